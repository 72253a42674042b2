//! A request as it travels: the request line, the headers, an empty line, the body byte for byte. Lines of the head end in CRLF or LF.

use http::{HeaderMap, header};

use super::{Draft, add, content_length, cut};

/// The most header lines of a capture.
const LINES: usize = 1000;

pub(super) fn read(bytes: &[u8]) -> Result<Draft, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut rest = bytes;
    let mut line = || -> Option<&[u8]> {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let (line, after) = rest.split_at(end);
        rest = &after[1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    };
    // Empty lines before the request line are passed over, as RFC 9112 (2.2) lets servers do.
    let first = loop {
        match line() {
            Some([]) => {}
            other => break other,
        }
    };
    let first = first.and_then(|line| std::str::from_utf8(line).ok()).ok_or("the request has no request line such as `POST /hooks HTTP/1.1`")?;
    let mut words = first.split_ascii_whitespace();
    let (Some(method), Some(url)) = (words.next(), words.next()) else {
        return Err(format!("`{}` is not a request line such as `POST /hooks HTTP/1.1`", cut(first)));
    };
    if method.starts_with("HTTP/") {
        return Err("this is a response; what is judged is the request".to_owned());
    }
    if words.next().is_some_and(|version| !version.starts_with("HTTP/")) || words.next().is_some() {
        return Err(format!("`{}` is not a request line such as `POST /hooks HTTP/1.1`", cut(first)));
    }
    let mut draft = Draft { method: method.to_owned(), url: url.to_owned(), ..Draft::default() };
    let mut lines = 0;
    loop {
        let line = line().ok_or("the headers do not end: an empty line is due before the body")?;
        if line.is_empty() {
            break;
        }
        lines += 1;
        if lines > LINES {
            return Err(format!("the request has more than {LINES} header lines"));
        }
        let at = line.iter().skip(1).position(|byte| *byte == b':').map(|at| at + 1).ok_or_else(|| match line[0] {
            b' ' | b'\t' => "a header is folded over several lines, which HTTP no longer allows".to_owned(),
            _ => format!("`{}` is not a header", cut(&String::from_utf8_lossy(line))),
        })?;
        // Browsers show HTTP/2's `:method` and the like among the headers.
        if line[0] == b':' {
            continue;
        }
        add(&mut draft.headers, &String::from_utf8_lossy(&line[..at]), &line[at + 1..])?;
    }
    draft.body = body(rest, &draft.headers, &mut draft.notes);
    Ok(draft)
}

/// The body that the headers announce, as far as the file has it.
fn body(rest: &[u8], headers: &HeaderMap, notes: &mut Vec<String>) -> Vec<u8> {
    let chunked = headers.get_all(header::TRANSFER_ENCODING).iter().any(|value| value.as_bytes().to_ascii_lowercase().ends_with(b"chunked"));
    if chunked {
        return match dechunked(rest) {
            Some(body) => {
                notes.push(format!("the request was sent in chunks; the {} bytes within them are the body", body.len()));
                body
            }
            None => {
                notes.push("the request was sent in chunks, but the file has no framing of chunks: what follows the head is taken as the body".to_owned());
                rest.to_vec()
            }
        };
    }
    let Some(length) = content_length(headers) else { return rest.to_vec() };
    if rest.len() > length {
        let more = rest.len() - length;
        // A line end after the body is how text files end; anything else is part of what the request may have become on its way.
        if rest[length..].iter().all(u8::is_ascii_whitespace) && more <= 2 {
            notes.push(format!("the file has {more} more byte(s) of line end after the {length} of Content-Length; they are left out"));
            return rest[..length].to_vec();
        }
        notes.push(format!("the body has {} bytes, and Content-Length says {length}", rest.len()));
    } else if rest.len() < length {
        notes.push(format!("the body has {} bytes, and Content-Length says {length}", rest.len()));
    }
    rest.to_vec()
}

/// The bytes within the chunks of RFC 9112 (7.1); `None` where the framing is broken.
fn dechunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(&rest[..end]).ok()?;
        let size = usize::from_str_radix(line.trim_end_matches('\r').split(';').next()?.trim(), 16).ok()?;
        rest = &rest[end + 1..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?;
        rest = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n"))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_byte_for_byte() {
        let check = |text: &[u8], want: &[u8], notes: usize| {
            let draft = read(text).expect("a request");
            assert_eq!((draft.body.as_slice(), draft.notes.len()), (want, notes), "{:?}", String::from_utf8_lossy(text));
        };
        check(b"POST /a?b=1 HTTP/1.1\r\nHost: h\r\nX-A:  v \r\nContent-Length: 3\r\n\r\na\r\n", b"a\r\n", 0);
        check(b"POST / HTTP/1.1\nHost: h\nContent-Length: 2\n\n{}\n", b"{}", 1);
        check(b"POST / HTTP/1.1\nContent-Length: 2\n\n{} and more", b"{} and more", 1);
        check(b"POST / HTTP/1.1\nContent-Length: 9\n\n{}", b"{}", 1);
        check(b"POST /\n\n{}\n", b"{}\n", 0);
        check(b"\r\nPOST / HTTP/2\r\n:authority: h\r\n\r\n\xff\x00", b"\xff\x00", 0);
        check(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=1\r\nde\r\n0\r\n\r\n", b"abcde", 1);
        check(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}", b"{}", 1);
    }

    #[test]
    fn headers_keep_their_values_and_copies() {
        let draft = read(b"POST / HTTP/1.1\r\nX-A:  v \r\nx-a: w\r\n\r\n").expect("a request");
        assert_eq!(draft.headers.get_all("x-a").iter().map(|v| v.as_bytes().to_vec()).collect::<Vec<_>>(), [b"v".to_vec(), b"w".to_vec()]);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for bad in [
            &b""[..],
            b"POST / HTTP/1.1\r\n",
            b"POST / HTTP/1.1\r\nnonsense\r\n\r\n",
            b"\xff\n\n",
            b"POST / HTTP/1.1\r\nA B: c\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"POST\r\n\r\n",
            b"POST / b HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        ] {
            assert!(read(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
