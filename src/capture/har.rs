//! An entry of a HAR file (HTTP Archive 1.2), as browsers, mitmproxy and Charles save it.
//!
//! Its `postData.text` is text: a body that was no UTF-8, or that the tool parsed into `params`, is no longer there byte for byte, and the
//! notes say so. Base64 is read where a tool marks it, which the format itself provides for responses only.

use data_encoding::{BASE64, BASE64_NOPAD};
use serde::Deserialize;

use super::{Draft, add, content_length, cut};

/// The most entries that are listed where one has to be chosen.
const LISTED: usize = 20;

#[derive(Deserialize)]
struct Archive {
    log: Log,
}

#[derive(Deserialize)]
struct Log {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    method: String,
    url: String,
    #[serde(default)]
    headers: Vec<Pair>,
    #[serde(default)]
    post_data: Option<PostData>,
    /// -1 where the tool does not know.
    #[serde(default)]
    body_size: Option<i64>,
}

#[derive(Deserialize)]
struct Pair {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PostData {
    #[serde(default)]
    mime_type: Option<String>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default, alias = "_encoding")]
    encoding: Option<String>,
    #[serde(default)]
    params: Vec<Pair>,
}

pub(super) fn read(bytes: &[u8], entry: Option<usize>) -> Result<Draft, String> {
    let archive: Archive = serde_json::from_slice(bytes).map_err(|why| format!("this is not a HAR file: {why}"))?;
    let mut entries = archive.log.entries;
    let count = entries.len();
    let request = match (entry, count) {
        (_, 0) => return Err("the HAR file has no entries".to_owned()),
        (Some(number), _) if number == 0 || number > count => return Err(format!("--entry {number} is not there: the HAR file has {count}, counted from 1")),
        (Some(number), _) => entries.swap_remove(number - 1).request,
        (None, 1) => entries.swap_remove(0).request,
        (None, _) => {
            let one = |(at, entry): (usize, &Entry)| format!("\n  {:>3}  {} {}", at + 1, cut(&entry.request.method), cut(&entry.request.url));
            let mut list: String = entries.iter().enumerate().take(LISTED).map(one).collect();
            if count > LISTED {
                list.push_str("\n  …");
            }
            return Err(format!("the HAR file has {count} entries: choose one with --entry N{list}"));
        }
    };
    let mut draft = Draft { method: request.method, url: request.url, ..Draft::default() };
    // HTTP/2's `:method` and the like are no headers.
    for Pair { name, value } in request.headers.iter().filter(|pair| !pair.name.starts_with(':')) {
        add(&mut draft.headers, name, value.as_bytes())?;
    }
    let size = request.body_size.and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0).or_else(|| content_length(&draft.headers));
    let Some(data) = request.post_data else {
        if let Some(size) = size.filter(|size| *size > 0) {
            draft.notes.push(format!("the HAR entry says that {size} bytes were sent and does not hold them"));
        }
        return Ok(draft);
    };
    if let Some(kind) = data.mime_type.filter(|kind| !kind.is_empty() && !draft.headers.contains_key(http::header::CONTENT_TYPE)) {
        add(&mut draft.headers, "content-type", kind.as_bytes())?;
    }
    draft.body = match (data.text, data.encoding.as_deref()) {
        (Some(text), Some(word)) if word.eq_ignore_ascii_case("base64") => {
            let packed: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
            let table = if packed.ends_with(b"=") { BASE64 } else { BASE64_NOPAD };
            table.decode(&packed).map_err(|_| "the body of the HAR entry is said to be base64, and is not")?
        }
        (Some(text), _) if !text.is_empty() || data.params.is_empty() => exact(text, size, &mut draft.notes),
        (_, _) => {
            let mut form = form_urlencoded::Serializer::new(String::new());
            form.extend_pairs(data.params.iter().map(|pair| (pair.name.as_str(), pair.value.as_str())));
            draft.notes.push(
                "the HAR entry holds the form's fields and not its bytes: the body was written anew, and blanks, escapes or the order may differ from what was sent"
                    .to_owned(),
            );
            form.finish().into_bytes()
        }
    };
    if let Some(size) = size.filter(|size| *size != draft.body.len()) {
        let note = format!("the HAR entry holds {} bytes of a body of {size}: it cannot be the one that was signed byte for byte", draft.body.len());
        draft.notes.push(note);
    }
    Ok(draft)
}

/// The bytes that a text stands for. Tools that keep a binary body as text write each byte as the character of its number.
fn exact(text: String, size: Option<usize>, notes: &mut Vec<String>) -> Vec<u8> {
    if text.contains('\u{fffd}') {
        notes.push("the HAR entry holds U+FFFD where bytes were no UTF-8: the exact bytes are lost; capture raw HTTP instead".to_owned());
    }
    if size.is_some_and(|size| size != text.len() && size == text.chars().count())
        && let Some(bytes) = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<Vec<u8>>>()
    {
        notes.push("the HAR entry holds each byte as one character (ISO 8859-1): read that way, its length is the one that was sent".to_owned());
        return bytes;
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn archive(post_data: Value, headers: Value, size: i64) -> Vec<u8> {
        let request = json!({ "method": "POST", "url": "https://h/a?b=1", "headers": headers, "postData": post_data, "bodySize": size });
        json!({ "log": { "entries": [{ "request": request }] } }).to_string().into_bytes()
    }

    fn check(post_data: Value, size: i64, want: &[u8], note: &str) {
        let draft =
            read(&archive(post_data.clone(), json!([{ "name": ":path", "value": "/" }, { "name": "X-A", "value": "v" }]), size), None).expect("an entry");
        assert_eq!((draft.body.as_slice(), draft.headers["x-a"].as_bytes()), (want, &b"v"[..]), "{post_data}");
        let said = draft.notes.join("; ");
        assert!(if note.is_empty() { said.is_empty() } else { said.contains(note) }, "{post_data}: {said}");
    }

    #[test]
    fn bodies_are_read_and_losses_told() {
        check(json!({ "mimeType": "application/json", "text": "{\"a\":\"é\"}" }), 10, "{\"a\":\"é\"}".as_bytes(), "");
        check(json!({ "text": "/wBh", "encoding": "base64" }), 3, b"\xff\0a", "");
        check(json!({ "text": "a\u{fffd}b" }), -1, "a\u{fffd}b".as_bytes(), "U+FFFD");
        check(json!({ "text": "\u{ff}\u{0}a" }), 3, b"\xff\0a", "one character");
        check(json!({ "text": "{}" }), 4, b"{}", "2 bytes of a body of 4");
        check(json!({ "params": [{ "name": "a b", "value": "1&2" }] }), -1, b"a+b=1%262", "fields and not its bytes");
        check(Value::Null, 7, b"", "does not hold them");
        assert!(read(&archive(json!({ "text": "!", "encoding": "base64" }), json!([]), -1), None).is_err());
    }

    #[test]
    fn one_entry_is_chosen() {
        let one = |path: &str| json!({ "request": { "method": "POST", "url": format!("https://h/{path}"), "headers": [] } });
        let text = json!({ "log": { "entries": [one("a"), one("b")] } }).to_string();
        assert_eq!(read(text.as_bytes(), Some(2)).map(|draft| draft.url), Ok("https://h/b".to_owned()));
        let why = read(text.as_bytes(), None).expect_err("two entries");
        assert!(why.contains("--entry N") && why.contains("2  POST https://h/b"), "{why}");
        assert!(read(text.as_bytes(), Some(3)).is_err() && read(text.as_bytes(), Some(0)).is_err());
        assert!(read(b"{\"log\":{\"entries\":[]}}", None).is_err() && read(b"{}", None).is_err());
    }
}
