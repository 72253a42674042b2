//! The walk over a compiled tree, counting its steps.

use std::cell::Cell;

use time::{Duration as Span, OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Body, Error, MAX_STEPS, MAX_TIME, Scope,
    compile::{Binary, Each, Function, Node, Root},
    value::Value,
};
use crate::clock::{Clock, Mono};

/// Steps between two looks at the clock.
const CLOCK_EVERY: u32 = 1024;

const NANOS: i128 = 1_000_000_000;

/// The years 1 to 9999, as the language has them.
const TIMES: std::ops::RangeInclusive<i128> = -62_135_596_800 * NANOS..=253_402_300_799 * NANOS + 999_999_999;

pub(super) fn matches(root: &Node, scope: &Scope<'_>) -> Result<bool, Error> {
    let walk = Walk { scope, steps: Cell::new(0), until: Cell::new(None) };
    match walk.node(root, &mut Vec::new())? {
        Value::Bool(holds) => Ok(holds),
        other => Err(Error::NotBool(other.kind())),
    }
}

struct Walk<'e> {
    scope: &'e Scope<'e>,
    steps: Cell<u32>,
    /// Set at the first look at the clock.
    until: Cell<Option<Mono>>,
}

type Locals<'e> = Vec<Value<'e>>;

impl<'e> Walk<'e> {
    fn charge(&self, steps: usize) -> Result<(), Error> {
        let before = self.steps.get();
        let after = before.saturating_add(u32::try_from(steps).unwrap_or(u32::MAX));
        self.steps.set(after);
        if after > MAX_STEPS {
            return Err(Error::Steps);
        }
        if after / CLOCK_EVERY != before / CLOCK_EVERY {
            let now = Clock::system().mono();
            match self.until.get() {
                None => self.until.set(Some(now.plus(MAX_TIME))),
                Some(until) if now > until => return Err(Error::Time),
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn equal(&self, a: &Value<'_>, b: &Value<'_>) -> Result<bool, Error> {
        let mut failed = None;
        let equal = a.equals(b, &mut |steps| {
            if failed.is_none() {
                failed = self.charge(steps).err();
            }
        });
        failed.map_or(Ok(equal), Err)
    }

    fn node(&self, node: &'e Node, locals: &mut Locals<'e>) -> Result<Value<'e>, Error> {
        self.charge(1)?;
        match node {
            Node::Constant(value) => Ok(value.clone()),
            Node::Root(root) => self.root(*root),
            Node::Local(at) => Ok(locals.get(*at).cloned().unwrap_or(Value::Null)),
            Node::Select(operand, field) => {
                if let Node::Root(root @ (Root::Event | Root::Client)) = &**operand {
                    return Ok(self.record_field(*root, field));
                }
                Ok(self.node(operand, locals)?.field(field).flatten().unwrap_or(Value::Null))
            }
            Node::Has(operand, field) => {
                let operand = self.node(operand, locals)?;
                let found = operand.field(field).flatten();
                // The fields of `event` and `client` always exist; there it asks whether they are known.
                Ok(Value::Bool(found.is_some_and(|value| !matches!((&operand, value), (Value::Record(_), Value::Null)))))
            }
            Node::Index(pair) => {
                let operand = self.node(&pair[0], locals)?;
                let key = self.node(&pair[1], locals)?;
                if let Value::Map(entries) = &operand {
                    self.charge(entries.len())?;
                }
                Ok(operand.entry(&key).flatten().unwrap_or(Value::Null))
            }
            Node::Not(operand) => Ok(Value::Bool(!self.truth(operand, locals, "!")?)),
            Node::Negate(operand) => match self.node(operand, locals)? {
                Value::Int(int) => int.checked_neg().map(Value::Int).ok_or(Error::Range("-")),
                Value::Double(double) => Ok(Value::Double(-double)),
                Value::Span(span) => Ok(Value::Span(-span)),
                other => Err(Error::Type { operation: "-", found: other.kind() }),
            },
            Node::And(pair) => self.logic(pair, false, "&&", locals),
            Node::Or(pair) => self.logic(pair, true, "||", locals),
            Node::If(three) => {
                let chosen = if self.truth(&three[0], locals, "?:")? { &three[1] } else { &three[2] };
                self.node(chosen, locals)
            }
            Node::Binary(binary, pair) => {
                let left = self.node(&pair[0], locals)?;
                let right = self.node(&pair[1], locals)?;
                self.binary(*binary, left, right)
            }
            Node::List(elements) => Ok(Value::List(elements.iter().map(|element| self.node(element, locals)).collect::<Result<_, _>>()?)),
            Node::Map(entries) => {
                let read = |(key, value): &'e (Node, Node)| Ok((self.node(key, locals)?, self.node(value, locals)?));
                Ok(Value::Map(entries.iter().map(read).collect::<Result<_, Error>>()?))
            }
            Node::Call(function, args) => match args.as_slice() {
                [only] => {
                    let value = self.node(only, locals)?;
                    self.unary(*function, value)
                }
                [text, part] => {
                    let (text, part) = (self.node(text, locals)?, self.node(part, locals)?);
                    self.text_test(*function, &text, &part)
                }
                _ => Err(Error::Type { operation: "call", found: "this many arguments" }),
            },
            Node::Matches(text, pattern) => match self.node(text, locals)? {
                Value::Text(text) => {
                    self.charge(16 + text.as_str().len() / 8)?;
                    Ok(Value::Bool(pattern.is_match(text.as_str())))
                }
                other => Err(Error::Type { operation: "matches", found: other.kind() }),
            },
            Node::Each(each, pair) => self.each(*each, &pair[0], None, &pair[1], locals),
            Node::MapIf(three) => self.each(Each::Map, &three[0], Some(&three[1]), &three[2], locals),
        }
    }

    fn truth(&self, node: &'e Node, locals: &mut Locals<'e>, operation: &'static str) -> Result<bool, Error> {
        match self.node(node, locals)? {
            Value::Bool(truth) => Ok(truth),
            other => Err(Error::Type { operation, found: other.kind() }),
        }
    }

    /// `&&` and `||`: the side that decides by itself wins over an error of the other.
    fn logic(&self, pair: &'e [Node; 2], deciding: bool, operation: &'static str, locals: &mut Locals<'e>) -> Result<Value<'e>, Error> {
        let left = self.truth(&pair[0], locals, operation);
        match left {
            Ok(left) if left == deciding => return Ok(Value::Bool(deciding)),
            Err(why) if why.is_limit() => return Err(why),
            _ => {}
        }
        match (left, self.truth(&pair[1], locals, operation)) {
            (_, Ok(right)) if right == deciding => Ok(Value::Bool(deciding)),
            (Ok(_), right) => right.map(Value::Bool),
            (Err(_), Err(why)) if why.is_limit() => Err(why),
            (Err(why), _) => Err(why),
        }
    }

    fn root(&self, root: Root) -> Result<Value<'e>, Error> {
        Ok(match root {
            Root::Body => match self.scope.body()? {
                Body::Json(json) => Value::json(json),
                Body::Form(pairs) => Value::Pairs(pairs),
                Body::Other => Value::Null,
            },
            Root::Headers => Value::Headers(&self.scope.event.headers),
            Root::Path => Value::Pairs(&self.scope.event.params),
            Root::Query => Value::Pairs(self.scope.query()),
            Root::Now => Value::Time(i128::from(self.scope.now.wall_ms) * 1_000_000),
            Root::Event | Root::Client => {
                let names = if root == Root::Event { super::compile::EVENT } else { super::compile::CLIENT };
                Value::Record(names.iter().map(|name| (*name, self.record_field(root, name))).collect())
            }
        })
    }

    fn record_field(&self, root: Root, field: &str) -> Value<'e> {
        let event = self.scope.event;
        match (root, field) {
            (Root::Event, "type") => Value::opt_text(event.event_type.as_deref()),
            (Root::Event, "id") => Value::made(event.id.to_string()),
            (Root::Event, "delivery_id") => Value::opt_text(event.delivery_id.as_deref()),
            (Root::Event, "route") => Value::text(&event.route),
            (Root::Event, "provider") => Value::opt_text(event.provider.as_deref()),
            (Root::Event, "verified") => Value::text(event.verification.code()),
            (Root::Client, "ip") => Value::made(event.client.ip.to_string()),
            (Root::Client, "cert") => Value::opt_text(event.client_cert.as_deref()),
            _ => Value::Null,
        }
    }

    fn binary(&self, binary: Binary, left: Value<'e>, right: Value<'e>) -> Result<Value<'e>, Error> {
        use std::cmp::Ordering::{Greater, Less};
        let order = |operation: &'static str| {
            if let (Value::Text(a), Value::Text(b)) = (&left, &right) {
                self.charge(a.as_str().len().min(b.as_str().len()) / 64)?;
            }
            left.compare(&right).ok_or(Error::Type { operation, found: if left.compare(&left).is_some() { right.kind() } else { left.kind() } })
        };
        Ok(Value::Bool(match binary {
            Binary::Equal => self.equal(&left, &right)?,
            Binary::NotEqual => !self.equal(&left, &right)?,
            Binary::Less => order("<")? == Less,
            Binary::LessOrEqual => order("<=")? != Greater,
            Binary::Greater => order(">")? == Greater,
            Binary::GreaterOrEqual => order(">=")? != Less,
            Binary::In => return self.contains(&left, &right).map(Value::Bool),
            Binary::Add => return self.add(left, right),
            Binary::Subtract | Binary::Multiply | Binary::Divide | Binary::Modulo => return arithmetic(binary, &left, &right),
        }))
    }

    fn contains(&self, wanted: &Value<'_>, container: &Value<'e>) -> Result<bool, Error> {
        if container.is_map() {
            self.charge(if matches!(container, Value::Map(_) | Value::Pairs(_)) { container.len().unwrap_or(0) } else { 1 })?;
            return Ok(container.entry(wanted).flatten().is_some());
        }
        match container {
            Value::List(list) => {
                for element in list.iter() {
                    if self.equal(element, wanted)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Value::Array(array) => {
                for element in *array {
                    if self.equal(&Value::json(element), wanted)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            // What is absent holds nothing.
            Value::Null => Ok(false),
            other => Err(Error::Type { operation: "in", found: other.kind() }),
        }
    }

    fn add(&self, left: Value<'e>, right: Value<'e>) -> Result<Value<'e>, Error> {
        if left.is_list() && right.is_list() {
            self.charge(left.len().unwrap_or(0) + right.len().unwrap_or(0))?;
            return Ok(Value::List(left.elements().into_iter().chain(right.elements()).collect()));
        }
        match (&left, &right) {
            (Value::Text(a), Value::Text(b)) => {
                self.charge((a.as_str().len() + b.as_str().len()) / 16)?;
                Ok(Value::made([a.as_str(), b.as_str()].concat()))
            }
            (Value::Time(at), Value::Span(span)) | (Value::Span(span), Value::Time(at)) => time(at + span, "+"),
            (Value::Span(a), Value::Span(b)) => self::span(a + b, "+"),
            _ => arithmetic(Binary::Add, &left, &right),
        }
    }

    fn text_test(&self, function: Function, text: &Value<'_>, part: &Value<'_>) -> Result<Value<'e>, Error> {
        let operation = match function {
            Function::StartsWith => "startsWith",
            Function::EndsWith => "endsWith",
            _ => "contains",
        };
        let (Value::Text(text), Value::Text(part)) = (text, part) else {
            let found = if matches!(text, Value::Text(_)) { part.kind() } else { text.kind() };
            return Err(Error::Type { operation, found });
        };
        let (text, part) = (text.as_str(), part.as_str());
        self.charge(text.len() / 32)?;
        Ok(Value::Bool(match function {
            Function::StartsWith => text.starts_with(part),
            Function::EndsWith => text.ends_with(part),
            _ => memchr::memmem::find(text.as_bytes(), part.as_bytes()).is_some(),
        }))
    }

    fn unary(&self, function: Function, value: Value<'e>) -> Result<Value<'e>, Error> {
        let wrong = |operation: &'static str| Err(Error::Type { operation, found: value.kind() });
        match function {
            Function::Size => match (&value, value.len()) {
                (Value::Text(text), _) => {
                    self.charge(text.as_str().len() / 32)?;
                    Ok(Value::Int(i64::try_from(text.as_str().chars().count()).unwrap_or(i64::MAX)))
                }
                (_, Some(len)) => Ok(Value::Int(i64::try_from(len).unwrap_or(i64::MAX))),
                _ => wrong("size"),
            },
            Function::Int => match &value {
                Value::Int(_) => Ok(value),
                Value::Uint(uint) => i64::try_from(*uint).map(Value::Int).map_err(|_| Error::Range("int")),
                // Two to the 63rd is a double, the largest whole number is not.
                Value::Double(double) if *double > -9.223_372_036_854_776e18 && *double < 9.223_372_036_854_776e18 => Ok(Value::Int(double.trunc() as i64)),
                Value::Double(_) => Err(Error::Range("int")),
                Value::Text(text) => text.as_str().parse().map(Value::Int).map_err(|_| Error::Unreadable("int")),
                Value::Time(at) => i64::try_from(at.div_euclid(NANOS)).map(Value::Int).map_err(|_| Error::Range("int")),
                _ => wrong("int"),
            },
            Function::Uint => match &value {
                Value::Uint(_) => Ok(value),
                Value::Int(int) => u64::try_from(*int).map(Value::Uint).map_err(|_| Error::Range("uint")),
                Value::Double(double) if *double > -1.0 && *double < 18_446_744_073_709_552_000.0 => Ok(Value::Uint(double.trunc() as u64)),
                Value::Double(_) => Err(Error::Range("uint")),
                Value::Text(text) => text.as_str().parse().map(Value::Uint).map_err(|_| Error::Unreadable("uint")),
                _ => wrong("uint"),
            },
            Function::Double => match &value {
                Value::Double(_) => Ok(value),
                Value::Int(int) => Ok(Value::Double(*int as f64)),
                Value::Uint(uint) => Ok(Value::Double(*uint as f64)),
                Value::Text(text) if text.as_str().len() <= 64 => text.as_str().parse().map(Value::Double).map_err(|_| Error::Unreadable("double")),
                Value::Text(_) => Err(Error::Unreadable("double")),
                _ => wrong("double"),
            },
            Function::Text => match &value {
                Value::Text(_) => Ok(value),
                Value::Bool(truth) => Ok(Value::text(if *truth { "true" } else { "false" })),
                Value::Int(int) => Ok(Value::made(int.to_string())),
                Value::Uint(uint) => Ok(Value::made(uint.to_string())),
                Value::Double(double) => Ok(Value::made(double.to_string())),
                Value::Time(at) => moment(*at).and_then(|at| at.format(&Rfc3339).ok()).map(Value::made).ok_or(Error::Range("string")),
                Value::Span(span) => Ok(Value::made(seconds(*span))),
                _ => wrong("string"),
            },
            Function::Bool => match &value {
                Value::Bool(_) => Ok(value),
                Value::Text(text) => match text.as_str() {
                    "1" | "t" | "true" | "True" | "TRUE" => Ok(Value::Bool(true)),
                    "0" | "f" | "false" | "False" | "FALSE" => Ok(Value::Bool(false)),
                    _ => Err(Error::Unreadable("bool")),
                },
                _ => wrong("bool"),
            },
            Function::Timestamp => match &value {
                Value::Time(_) => Ok(value),
                Value::Int(int) => time(i128::from(*int) * NANOS, "timestamp"),
                Value::Text(text) if text.as_str().len() <= 64 => {
                    let at = OffsetDateTime::parse(text.as_str(), &Rfc3339).map_err(|_| Error::Unreadable("timestamp"))?;
                    time(at.unix_timestamp_nanos(), "timestamp")
                }
                Value::Text(_) => Err(Error::Unreadable("timestamp")),
                _ => wrong("timestamp"),
            },
            Function::Duration => match &value {
                Value::Span(_) => Ok(value),
                Value::Text(text) => parse_span(text.as_str()).ok_or(Error::Unreadable("duration")).and_then(|span| self::span(span, "duration")),
                _ => wrong("duration"),
            },
            accessor => match &value {
                Value::Time(at) => moment(*at).map(|at| Value::Int(part_of_time(accessor, at))).ok_or(Error::Range("the time's part")),
                Value::Span(span) => part_of_span(accessor, *span).map(Value::Int).ok_or(Error::Type { operation: "a part of a date", found: "a duration" }),
                _ => wrong("a part of a time"),
            },
            // `contains` and its like have two arguments and never come here.
        }
    }

    fn each(&self, each: Each, range: &'e Node, condition: Option<&'e Node>, body: &'e Node, locals: &mut Locals<'e>) -> Result<Value<'e>, Error> {
        let range = self.node(range, locals)?;
        let Some(len) = range.len() else {
            let operation = match each {
                Each::All => "all",
                Each::Exists => "exists",
                Each::ExistsOne => "exists_one",
                Each::Filter => "filter",
                Each::Map => "map",
            };
            return match (&range, each) {
                // What is absent has no elements.
                (Value::Null, Each::All) => Ok(Value::Bool(true)),
                (Value::Null, Each::Exists | Each::ExistsOne) => Ok(Value::Bool(false)),
                (Value::Null, Each::Filter | Each::Map) => Ok(Value::List([].into())),
                (other, _) => Err(Error::Type { operation, found: other.kind() }),
            };
        };
        self.charge(len)?;
        let mut made = Vec::new();
        let mut found = 0_u32;
        // An element that decides `all` or `exists` wins over the errors of others, wherever it stands.
        let mut pending = None;
        for element in range.elements() {
            let kept = matches!(each, Each::Filter).then(|| element.clone());
            locals.push(element);
            let outcome = self.element(each, condition, body, locals);
            locals.pop();
            match outcome {
                Ok(Verdict::Holds(truth)) => match (each, truth) {
                    (Each::All, false) => return Ok(Value::Bool(false)),
                    (Each::Exists, true) => return Ok(Value::Bool(true)),
                    (Each::ExistsOne, true) => found += 1,
                    (Each::Filter, true) => made.extend(kept),
                    _ => {}
                },
                Ok(Verdict::Value(value)) => made.push(value),
                Ok(Verdict::Skipped) => {}
                Err(why) if !why.is_limit() && matches!(each, Each::All | Each::Exists) => pending = pending.or(Some(why)),
                Err(why) => return Err(why),
            }
        }
        match (pending, each) {
            (Some(why), _) => Err(why),
            (None, Each::All) => Ok(Value::Bool(true)),
            (None, Each::Exists) => Ok(Value::Bool(false)),
            (None, Each::ExistsOne) => Ok(Value::Bool(found == 1)),
            (None, Each::Filter | Each::Map) => Ok(Value::List(made.into())),
        }
    }

    fn element(&self, each: Each, condition: Option<&'e Node>, body: &'e Node, locals: &mut Locals<'e>) -> Result<Verdict<'e>, Error> {
        if let Some(condition) = condition
            && !self.truth(condition, locals, "map")?
        {
            return Ok(Verdict::Skipped);
        }
        match each {
            Each::Map => self.node(body, locals).map(Verdict::Value),
            Each::All => self.truth(body, locals, "all").map(Verdict::Holds),
            Each::Exists => self.truth(body, locals, "exists").map(Verdict::Holds),
            Each::ExistsOne => self.truth(body, locals, "exists_one").map(Verdict::Holds),
            Each::Filter => self.truth(body, locals, "filter").map(Verdict::Holds),
        }
    }
}

enum Verdict<'e> {
    Holds(bool),
    Value(Value<'e>),
    Skipped,
}

/// Both sides of one type, as the language wants it; nothing wraps.
fn arithmetic<'e>(binary: Binary, left: &Value<'_>, right: &Value<'_>) -> Result<Value<'e>, Error> {
    let operation = match binary {
        Binary::Add => "+",
        Binary::Subtract => "-",
        Binary::Multiply => "*",
        Binary::Divide => "/",
        _ => "%",
    };
    let divides = matches!(binary, Binary::Divide | Binary::Modulo);
    match (left, right) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) if divides => Err(Error::DivisionByZero),
        (Value::Int(a), Value::Int(b)) => match binary {
            Binary::Add => a.checked_add(*b),
            Binary::Subtract => a.checked_sub(*b),
            Binary::Multiply => a.checked_mul(*b),
            Binary::Divide => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Int)
        .ok_or(Error::Range(operation)),
        (Value::Uint(a), Value::Uint(b)) => match binary {
            Binary::Add => a.checked_add(*b),
            Binary::Subtract => a.checked_sub(*b),
            Binary::Multiply => a.checked_mul(*b),
            Binary::Divide => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Uint)
        .ok_or(Error::Range(operation)),
        (Value::Double(a), Value::Double(b)) => match binary {
            Binary::Add => Ok(Value::Double(a + b)),
            Binary::Subtract => Ok(Value::Double(a - b)),
            Binary::Multiply => Ok(Value::Double(a * b)),
            Binary::Divide => Ok(Value::Double(a / b)),
            _ => Err(Error::Type { operation, found: "a number with a fraction" }),
        },
        (Value::Time(a), Value::Time(b)) if binary == Binary::Subtract => span(a - b, operation),
        (Value::Time(a), Value::Span(b)) if binary == Binary::Subtract => time(a - b, operation),
        (Value::Span(a), Value::Span(b)) if binary == Binary::Subtract => span(a - b, operation),
        (Value::Int(_) | Value::Uint(_) | Value::Double(_), other) => Err(Error::Type { operation, found: other.kind() }),
        (other, _) => Err(Error::Type { operation, found: other.kind() }),
    }
}

fn time<'e>(nanos: i128, operation: &'static str) -> Result<Value<'e>, Error> {
    if TIMES.contains(&nanos) { Ok(Value::Time(nanos)) } else { Err(Error::Range(operation)) }
}

/// About 292 years either way, as the language has it.
fn span<'e>(nanos: i128, operation: &'static str) -> Result<Value<'e>, Error> {
    if i64::try_from(nanos).is_ok() { Ok(Value::Span(nanos)) } else { Err(Error::Range(operation)) }
}

fn moment(nanos: i128) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
}

/// The accessors of a time, in UTC; months, days of the month and of the year count from 0, Sunday is day 0.
fn part_of_time(accessor: Function, at: OffsetDateTime) -> i64 {
    match accessor {
        Function::FullYear => at.year().into(),
        Function::Month => i64::from(u8::from(at.month())) - 1,
        Function::DayOfMonth => i64::from(at.day()) - 1,
        Function::DayOfYear => i64::from(at.ordinal()) - 1,
        Function::DayOfWeek => at.weekday().number_days_from_sunday().into(),
        Function::Hours => at.hour().into(),
        Function::Minutes => at.minute().into(),
        Function::Seconds => at.second().into(),
        _ => at.millisecond().into(),
    }
}

fn part_of_span(accessor: Function, nanos: i128) -> Option<i64> {
    let span = Span::nanoseconds_i128(nanos);
    match accessor {
        Function::Hours => Some(span.whole_hours()),
        Function::Minutes => Some(span.whole_minutes()),
        Function::Seconds => Some(span.whole_seconds()),
        Function::Milliseconds => Some(span.subsec_milliseconds().into()),
        _ => None,
    }
}

fn seconds(nanos: i128) -> String {
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let (whole, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{whole}s");
    }
    format!("{sign}{whole}.{}s", format!("{rest:09}").trim_end_matches('0'))
}

/// `1h30m`, `1.5s`, `-250ms`: numbers with `h`, `m`, `s`, `ms`, `us` or `ns`, as the language writes durations.
fn parse_span(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() || rest.len() > 64 {
        return None;
    }
    let mut total = 0_i128;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let scale: i128 = match unit {
            "h" => 3600 * NANOS,
            "m" => 60 * NANOS,
            "s" => NANOS,
            "ms" => 1_000_000,
            "us" | "µs" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() > 18 || fraction.len() > 9 || (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse::<i128>().ok()? * scale / 10_i128.pow(u32::try_from(fraction.len()).ok()?) };
        total = total.checked_add(whole.checked_mul(scale)?.checked_add(part)?)?;
        rest = after;
    }
    Some(sign * total)
}
