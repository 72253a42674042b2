use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

use super::{Condition, Error, Scope};
use crate::{
    clock::{Clock, Now},
    event::Event,
};

const BODY: &str = r#"{"ref":"refs/heads/main","n":5,"big":18446744073709551615,"half":0.5,"nil":null,"list":[1,2,3],"labels":["bug","P1"],
    "commits":[{"id":"a","added":["x"]},{"id":"b","added":[]}],"deep":{"er":{"est":true}},"at":"2026-11-24T20:00:00Z"}"#;

fn event(content_type: &'static str, body: &str) -> Event {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static(content_type));
    headers.insert("x-github-event", HeaderValue::from_static("push"));
    Event {
        params: vec![("tenant".to_owned(), "acme".to_owned()), ("room".to_owned(), "a b".to_owned())],
        query: Some("tenant=a%20b&x=1&x=2".to_owned()),
        headers,
        ..Event::sample(body.to_owned())
    }
}

fn now() -> Now {
    // 2026-11-24T20:53:20Z, a Tuesday.
    Clock::hand(1_795_553_600_000).now()
}

fn eval(text: &str, event: &Event) -> Result<bool, Error> {
    let condition = Condition::compile(text).unwrap_or_else(|why| panic!("{text}: {why}"));
    condition.matches(&Scope::new(event, now()))
}

fn check(text: &str, want: Result<bool, Error>) {
    assert_eq!(eval(text, &event("application/json", BODY)), want, "{text}");
}

#[test]
fn events_are_seen_as_they_are() {
    for text in [
        "event.type == 'push' && body.ref == 'refs/heads/main'",
        "event.route == 'github' && event.provider == 'github' && event.verified == 'content'",
        "event.delivery_id == null && !has(event.delivery_id) && has(event.type)",
        "size(event.id) == 36",
        "event['type'] == 'push' && event == event",
        "headers['X-GitHub-Event'] == 'push' && headers['x-none'] == null && 'content-type' in headers",
        "query.tenant == 'a b' && query.x == '1' && size(query) == 3",
        "client.ip == '192.0.2.1' && client.cert == null",
        "client.ip.startsWith('192.0.2.')",
        "now > timestamp('2026-11-24T20:00:00Z') && now - timestamp(body.at) < duration('1h')",
        "now.getDayOfWeek() == 2 && now.getHours() == 20 && now.getMonth() == 10 && now.getDate() == 23",
        "int(now) == 1795553600",
        "body.n == 5 && body.n < 5.5 && body.n >= 5u && body.half == 0.5",
        "body.big == 18446744073709551615u && body.big > 1",
        "body.n + 1 == 6 && body.n % 2 == 1",
        "body.list[0] == 1 && 2 in body.list && !(4 in body.list) && size(body.list) == 3",
        "body.labels.exists(l, l == 'bug') && body.labels.all(l, size(l) > 1) && body.labels.exists_one(l, l.startsWith('P'))",
        "body.commits.filter(c, size(c.added) > 0).map(c, c.id) == ['a']",
        "body.commits.map(c, size(c.added) > 0, c.id) == ['a']",
        "body.deep.er.est",
        "body['deep']['er'] == {'est': true}",
        "{'est': true} == body.deep.er && [1, 2, 3] == body.list && body.list == [1.0, 2u, 3]",
        "body.deep.exists(k, k == 'er') && has(body.nil) && !has(body.none)",
        "body.ref.matches('^refs/heads/(main|master)$') && matches(body.ref, 'ma')",
        "(body.n > 3 ? 'big' : 'small') == 'big'",
        "string(body.n) == '5' && int('7') == 7 && double('0.5') == 0.5 && bool('true') && uint(7) == 7u && string(0.5) == '0.5'",
        "duration('1h30m') == duration('90m') && duration('1.5s').getMilliseconds() == 500 && string(duration('90s')) == '90s'",
        "body.list + [4] == [1, 2, 3, 4] && 'a' + 'b' == 'ab'",
        "9223372036854775807 < 9223372036854775808.0 && body.big < 18446744073709551616.0 && body.big > 18446744073709549568.0",
        "-body.n == -5 && 7 / 2 == 3 && -7 / 2 == -3",
    ] {
        check(text, Ok(true));
    }
}

#[test]
fn what_is_absent_is_null() {
    for text in [
        "body.none == null && null == body.none.at.all && body.ref.length == null && body.list.first == null && body.list[9] == null",
        "!('x' in body.none) && body.none.all(x, x) && !body.none.exists(x, x)",
        "body.none != 'x' && body.none != 5",
        "headers.host == null && query.none == null && path.none == null && !has(path.none)",
        "path.tenant == 'acme' && path['room'] == 'a b' && 'room' in path && path.exists(name, name == 'tenant')",
    ] {
        check(text, Ok(true));
    }
    check("body.none > 5", Err(Error::Type { operation: ">", found: "null" }));
    check("body.none", Err(Error::NotBool("null")));
    check("!body.none", Err(Error::Type { operation: "!", found: "null" }));
}

#[test]
fn errors_give_way_to_what_decides() {
    let wrong = Error::Type { operation: ">", found: "null" };
    check("body.none > 5 || true", Ok(true));
    check("true || body.none > 5", Ok(true));
    check("body.none > 5 && false", Ok(false));
    check("body.none > 5 && true", Err(wrong.clone()));
    check("body.none > 5 || false", Err(wrong));
    check("body.list.exists(x, x == 3 || x.y > 1)", Ok(true));
    check("1 / (body.n - 5) == 1", Err(Error::DivisionByZero));
    check("9223372036854775807 + body.n > 0", Err(Error::Range("+")));
    check("-9223372036854775808 / -1 == body.n", Err(Error::Range("/")));
    check("int(body.big) == 1", Err(Error::Range("int")));
    check("int(body.ref) == 1", Err(Error::Unreadable("int")));
    check("body.ref", Err(Error::NotBool("text")));
}

#[test]
fn bodies_are_json_forms_or_null() {
    let form = event("application/x-www-form-urlencoded; charset=utf-8", "a=1&b=x+y&a=2");
    assert_eq!(eval("body.a == '1' && body.b == 'x y' && body.c == null && 'a' in body", &form), Ok(true));
    for text in ["<xml/>", "", "{\"a\":", "\u{feff}{}"] {
        assert_eq!(eval("body == null && body.a == null", &event("text/xml", text)), Ok(true), "{text:?}");
    }
    assert_eq!(eval("body.a == 1", &event("text/plain", "{\"a\":1}")), Ok(true));
    assert_eq!(eval("body == null", &event("application/json", &"[".repeat(200))), Ok(true), "deeper than any reader goes");
}

#[test]
fn evaluation_is_bounded() {
    let numbers: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    let list = event("application/json", &format!("{{\"l\":[{}],\"s\":\"{}\"}}", numbers.join(","), "x".repeat(100_000)));
    // On a busy machine the time may run out before the steps do.
    let cut = |text: &str| assert!(matches!(eval(text, &list), Err(Error::Steps | Error::Time)), "{text}");
    cut("body.l.all(x, body.l.all(y, x + y >= 0))");
    // A limit never gives way.
    cut("body.l.all(x, body.l.all(y, x + y >= 0)) || true");
    // Long texts cost more, and cannot grow without end.
    cut("body.l.all(x, body.s.contains('y') || true)");
    let doubled = (0..12).fold("body.s".to_owned(), |text, _| format!("[{text}].map(x, x + x)[0]"));
    cut(&format!("size({doubled}) > 0"));
    let many = event("application/json", &format!("[{}1]", "1,".repeat(300_000)));
    assert_eq!(eval("size(body) > 0", &many), Err(Error::BodyTooLarge));
    assert_eq!(eval("event.type == 'push'", &many), Ok(true));
}

#[test]
fn mistakes_are_named_at_load() {
    let check = |text: &str, want: &str| match Condition::compile(text) {
        Ok(_) => panic!("{text} was accepted"),
        Err(why) => assert!(why.contains(want), "{text}: {why}"),
    };
    check("", "empty");
    check("evnt.type == 'push'", "unknown variable `evnt`: did you mean `event`?");
    check("event.typ == 'push'", "unknown field `typ`: did you mean `type`?");
    check("event['typ'] == 'push'", "unknown field `typ`");
    check("client.address == ''", "unknown field `address`");
    check("body.a.startswith('x')", "unknown function `startswith`: did you mean `startsWith`?");
    check("size()", "called like x.size()");
    check("startsWith('x', 'y')", "called like x.startsWith(y)");
    check("body.a.matches(body.b)", "must be written out");
    check("body.a.matches('(')", "not good");
    check("body.a.matches('(a{1000}){1000}')", "not good");
    check("body.a ==", "column 10: mismatched input");
    check("body.a = 1", "column");
    check("'push'", "always text");
    check("[1]", "true or false");
    check("b'x' == body.a", "bytes are not known");
    check("Foo{a: 1} == body", "structs");
    check("has(body)", "`has` asks for a field");
    check("body.all(1, true)", "name of a variable");
    check("body.all(x)", "is called like");
    check(&format!("{} > 1", vec!["1"; 1900].join("+")), "nested deeper");
    check(&format!("{}true{}", "(".repeat(1500), ")".repeat(1500)), "cannot be read");
    check(&"a".repeat(5000), "4096 at most");
}

#[test]
fn chains_of_signs_exhaust_no_stack() {
    check(&format!("{}true", "!".repeat(4000)), Ok(true));
    drop(Condition::compile(&format!("{}1 == 1", "-".repeat(4000))));
    drop(Condition::compile(&"true?true:".repeat(400)));
    drop(Condition::compile(&format!("{}body", "body[".repeat(800))));
}

#[test]
fn constants_prove_that_two_never_hold() {
    let check = |a: &str, b: &str, want: bool| {
        let (left, right) = (Condition::compile(a).expect("good"), Condition::compile(b).expect("good"));
        assert_eq!((left.excludes(&right), right.excludes(&left)), (want, want), "{a} | {b}");
    };
    check("event.type == 'a'", "event.type == 'b'", true);
    check("event.type == 'a' && body.n > 5", "body.x && 'b' == event.type", true);
    check("event.type == 'a'", "event.type != 'a'", true);
    check("event.type in ['a', 'b']", "event.type == 'c'", true);
    check("event.type in ['a', 'b']", "!(event.type in ['b', 'a', 'c'])", true);
    check("event.type == 'a' || event.type == 'b'", "event.type == 'c'", true);
    check("!(event.type == 'a' || body.x == 1)", "event.type == 'a'", true);
    check("body.n == 1", "body.n == 1.5", true);
    check("body['n'] == 1", "body.n == 2", true);
    check("event.type == 'a'", "event.type == 'a'", false);
    check("event.type == 'a'", "event.route == 'b'", false);
    check("body.n == 1", "body.n == 1.0", false);
    check("event.type == 'a' || body.x", "event.type == 'b'", false);
    check("event.type in ['a', 'b']", "event.type != 'a'", false);
    check("body.x", "!body.x", false);
    check("body.n > 5", "body.n < 5", false);
}

/// The crate's own evaluator is the oracle where it goes: scalars, lists and maps without absent fields.
#[test]
fn agrees_with_the_reference_evaluator() {
    let env = Arc::new(cel::Env::stdlib());
    for text in [
        "1 == 1.0 && 1u == 1 && 2 > 1u && 1.5 > 1 && -1 < 0u",
        "9223372036854775807 + 1 == 0",
        "5 / 0 == 0",
        "5 % 0 == 0",
        "5.0 / 0.0 > 1.0",
        "-5 % 3 == -2",
        "1 + 1.0 == 2.0",
        "1u - 2u == 0u",
        "'a' < 'b' && 'B' < 'a' && 'é' > 'z'",
        "size('héllo') == 5 && 'héllo'.contains('é') && 'abc'.endsWith('bc')",
        "false < true",
        "null == null",
        "null == 1",
        "'1' == 1",
        "[1, 2] == [1.0, 2.0] && [1] != [2] && [] == []",
        "{'a': 1} == {'a': 1.0} && {'a': 1} != {'b': 1}",
        "{1: 'x'}[1.0] == 'x' || true",
        "'a' in {'a': 1} && !('b' in {'a': 1}) && 1 in [1.0]",
        "[1, 2, 3].all(x, x > 0) && [1, 2].exists(x, x == 2) && ![1, 1].exists_one(x, x == 1)",
        "[1, 2, 3].map(x, x * 2) == [2, 4, 6] && [1, 2, 3].filter(x, x > 1) == [2, 3]",
        "[1, 2, 3].map(x, x > 1, x + 1) == [3, 4]",
        "[[1, 2], [3]].map(x, size(x)) == [2, 1]",
        "['a', 1].exists(x, x > 0)",
        "[1, 'a'].all(x, x > 0)",
        "true ? false : 1 / 0 == 1",
        "1 / 0 == 1 || true",
        "false && 1 / 0 == 1",
        "1 / 0 == 1 && false",
        "1 < 'a'",
        "!1",
        "1 && true",
        "true && 1",
        "1",
        "'abc'.matches('^a.c$') && !'abc'.matches('x')",
        "int(3.9) == 3 && int(-3.9) == -3 && int('42') == 42 && double('1e3') == 1000.0 && string(1.5) == '1.5' && string(true) == 'true'",
        "int('x') == 1",
        "int(1e19) == 1",
        "uint(-1) == 1u",
        "has({'a': 1}.a) && !has({'a': 1}.b)",
        "-(-9223372036854775808) == 0",
        "size([1, 2]) == 2 && size({'a': 1}) == 1",
        "[1] + [2] == [1, 2] && 'a' + 'b' == 'ab'",
        "'a' + 1 == 'a1'",
    ] {
        let ours = match Condition::compile(text) {
            Ok(condition) => condition.matches(&Scope::new(&event("application/json", "{}"), now())).ok(),
            Err(_) => None,
        };
        let theirs = match env.compile(text).expect("both parse").execute(&cel::Context::with_env(Arc::clone(&env))) {
            Ok(cel::Value::Bool(truth)) => Some(truth),
            _ => None,
        };
        assert_eq!(ours, theirs, "{text}");
    }
}

proptest::proptest! {
    /// Whatever is written, reading ends in an answer.
    #[test]
    fn any_text_is_read_or_refused(text in "[a-z\"'(){}\\[\\].,:?!&|=<>+*/% 0-9-]{0,60}") {
        if let Ok(condition) = Condition::compile(&text) {
            let _ = condition.matches(&Scope::new(&event("application/json", BODY), now()));
        }
    }
}
