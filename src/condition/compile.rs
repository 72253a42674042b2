//! Text to checked tree.

use cel::{
    Env,
    common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators},
};

use super::{MAX_DEPTH, MAX_SOURCE, value::Value};
use crate::section::nearest;

/// Parsing recurses without a limit we could rely on; it gets a stack that [`MAX_SOURCE`] bytes cannot exhaust.
const PARSE_STACK: usize = 64 << 20;

/// The largest compiled pattern of `matches`, in bytes.
const MAX_PATTERN: usize = 1 << 20;

#[derive(Debug)]
pub(super) enum Node {
    Constant(Value<'static>),
    Root(Root),
    /// A variable of `all` and the like, counted from the outermost.
    Local(usize),
    Select(Box<Node>, String),
    Has(Box<Node>, String),
    Index(Box<[Node; 2]>),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    If(Box<[Node; 3]>),
    Binary(Binary, Box<[Node; 2]>),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Call(Function, Vec<Node>),
    Matches(Box<Node>, Box<regex::Regex>),
    Each(Each, Box<[Node; 2]>),
    /// `map(x, condition, value)`: range, condition, value.
    MapIf(Box<[Node; 3]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    Event,
    Body,
    Headers,
    Path,
    Query,
    Client,
    Now,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Each {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Int,
    Uint,
    Double,
    Text,
    Bool,
    Timestamp,
    Duration,
    FullYear,
    Month,
    DayOfMonth,
    DayOfYear,
    DayOfWeek,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

const ROOTS: &[(&str, Root)] = &[
    ("event", Root::Event),
    ("body", Root::Body),
    ("headers", Root::Headers),
    ("path", Root::Path),
    ("query", Root::Query),
    ("client", Root::Client),
    ("now", Root::Now),
];

/// The fields of the closed records.
pub(super) const EVENT: &[&str] = &["type", "id", "delivery_id", "route", "provider", "verified"];
pub(super) const CLIENT: &[&str] = &["ip", "cert"];

/// Name, arguments beside the receiver, may be called as a method, may be called with the receiver as an argument.
const FUNCTIONS: &[(&str, Function, usize, bool, bool)] = &[
    ("size", Function::Size, 0, true, true),
    ("contains", Function::Contains, 1, true, false),
    ("startsWith", Function::StartsWith, 1, true, false),
    ("endsWith", Function::EndsWith, 1, true, false),
    ("int", Function::Int, 0, false, true),
    ("uint", Function::Uint, 0, false, true),
    ("double", Function::Double, 0, false, true),
    ("string", Function::Text, 0, false, true),
    ("bool", Function::Bool, 0, false, true),
    ("timestamp", Function::Timestamp, 0, false, true),
    ("duration", Function::Duration, 0, false, true),
    ("getFullYear", Function::FullYear, 0, true, false),
    ("getMonth", Function::Month, 0, true, false),
    ("getDate", Function::DayOfMonth, 0, true, false),
    ("getDayOfYear", Function::DayOfYear, 0, true, false),
    ("getDayOfWeek", Function::DayOfWeek, 0, true, false),
    ("getHours", Function::Hours, 0, true, false),
    ("getMinutes", Function::Minutes, 0, true, false),
    ("getSeconds", Function::Seconds, 0, true, false),
    ("getMilliseconds", Function::Milliseconds, 0, true, false),
];

const EACH: &[(&str, Each)] = &[
    ("all", Each::All),
    ("exists", Each::Exists),
    ("exists_one", Each::ExistsOne),
    ("existsOne", Each::ExistsOne),
    ("filter", Each::Filter),
    ("map", Each::Map),
];

const BINARY: &[(&str, Binary)] = &[
    (operators::EQUALS, Binary::Equal),
    (operators::NOT_EQUALS, Binary::NotEqual),
    (operators::LESS, Binary::Less),
    (operators::LESS_EQUALS, Binary::LessOrEqual),
    (operators::GREATER, Binary::Greater),
    (operators::GREATER_EQUALS, Binary::GreaterOrEqual),
    (operators::IN, Binary::In),
    (operators::ADD, Binary::Add),
    (operators::SUBSTRACT, Binary::Subtract),
    (operators::MULTIPLY, Binary::Multiply),
    (operators::DIVIDE, Binary::Divide),
    (operators::MODULO, Binary::Modulo),
];

/// Reads and checks one text; hands out the path parameters that it names too.
pub(super) fn compile(text: &str) -> Result<(Node, Vec<String>), String> {
    if text.trim().is_empty() {
        return Err("the condition is empty".to_owned());
    }
    if text.len() > MAX_SOURCE {
        return Err(format!("the condition is {} bytes long: {MAX_SOURCE} at most", text.len()));
    }
    // The syntax tree is built, walked and dropped there: each of the three recurses.
    std::thread::scope(|threads| {
        std::thread::Builder::new()
            .name("condition".to_owned())
            .stack_size(PARSE_STACK)
            .spawn_scoped(threads, || parse(text))
            .map_err(|why| format!("no thread to read the condition: {why}"))?
            .join()
            .unwrap_or_else(|_| Err("the condition cannot be read".to_owned()))
    })
}

fn parse(text: &str) -> Result<(Node, Vec<String>), String> {
    // Without macros: `all`, `has` and the like stay calls, which is the form we want.
    let parser = Env::default().with_optional_support(false).parser();
    let tree = parser.parse(text).map_err(|errors| match errors.errors.first() {
        Some(first) => {
            let message = first.msg.lines().next().unwrap_or_default();
            // The parser lists everything that could have stood there.
            let message = message.split(" expecting {").next().unwrap_or_default().trim_start_matches("Syntax error: ");
            format!("the condition cannot be read at column {}: {message}", first.pos.1.max(1))
        }
        None => "the condition cannot be read".to_owned(),
    })?;
    let mut compiler = Compiler::default();
    let node = compiler.node(&tree)?;
    match &node {
        Node::Constant(value) if !matches!(value, Value::Bool(_)) => Err(format!("the condition is always {}: it must be true or false", value.kind())),
        Node::List(_) | Node::Map(_) | Node::Negate(_) => Err("the condition must be true or false".to_owned()),
        _ => Ok((node, compiler.params)),
    }
}

#[derive(Default)]
struct Compiler {
    /// Names of the variables in scope, outermost first.
    locals: Vec<String>,
    depth: usize,
    /// Fields of `path`.
    params: Vec<String>,
}

impl Compiler {
    fn node(&mut self, expr: &IdedExpr) -> Result<Node, String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("the condition is nested deeper than {MAX_DEPTH}: split long chains, use `in` or `exists`"));
        }
        self.depth += 1;
        let node = self.node_inside(expr);
        self.depth -= 1;
        node
    }

    fn boxed(&mut self, expr: &IdedExpr) -> Result<Box<Node>, String> {
        self.node(expr).map(Box::new)
    }

    fn pair(&mut self, [a, b]: [&IdedExpr; 2]) -> Result<Box<[Node; 2]>, String> {
        Ok(Box::new([self.node(a)?, self.node(b)?]))
    }

    fn node_inside(&mut self, expr: &IdedExpr) -> Result<Node, String> {
        match &expr.expr {
            Expr::Literal(literal) => constant(literal).map(Node::Constant),
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => {
                let operand = self.node(&select.operand)?;
                self.known_field(&operand, &select.field)?;
                Ok(Node::Select(Box::new(operand), select.field.clone()))
            }
            Expr::List(list) => Ok(Node::List(list.elements.iter().map(|element| self.node(element)).collect::<Result<_, _>>()?)),
            Expr::Map(map) => {
                let mut entries = Vec::with_capacity(map.entries.len());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { return Err("structs are not known in conditions".to_owned()) };
                    let key = self.node(&entry.key)?;
                    let Node::Constant(Value::Text(_) | Value::Int(_) | Value::Uint(_) | Value::Bool(_)) = key else {
                        return Err("the keys of a map must be written out: text, whole numbers or booleans".to_owned());
                    };
                    entries.push((key, self.node(&entry.value)?));
                }
                Ok(Node::Map(entries))
            }
            Expr::Call(call) => self.call(call),
            Expr::Struct(_) => Err("structs are not known in conditions".to_owned()),
            Expr::Comprehension(_) | Expr::Unspecified => Err("the condition cannot be read".to_owned()),
        }
    }

    /// Refuses a field that a closed record never has; which ones `path` has its route knows.
    fn known_field(&mut self, operand: &Node, field: &str) -> Result<(), String> {
        let known = match operand {
            Node::Root(Root::Event) => EVENT,
            Node::Root(Root::Client) => CLIENT,
            Node::Root(Root::Path) => {
                self.params.push(field.to_owned());
                return Ok(());
            }
            _ => return Ok(()),
        };
        if known.contains(&field) { Ok(()) } else { Err(unknown("field", field, known)) }
    }

    fn ident(&self, name: &str) -> Result<Node, String> {
        if let Some(at) = self.locals.iter().rposition(|local| local == name) {
            return Ok(Node::Local(at));
        }
        let plain = name.strip_prefix('.').unwrap_or(name);
        if let Some((_, root)) = ROOTS.iter().find(|(known, _)| *known == plain) {
            return Ok(Node::Root(*root));
        }
        let known: Vec<&str> = ROOTS.iter().map(|(known, _)| *known).collect();
        Err(unknown("variable", plain, &known))
    }

    fn call(&mut self, call: &CallExpr) -> Result<Node, String> {
        let name = call.func_name.as_str();
        match (call.target.as_deref(), call.args.as_slice()) {
            (None, [a, b]) if name == operators::LOGICAL_AND => return self.pair([a, b]).map(Node::And),
            (None, [a, b]) if name == operators::LOGICAL_OR => return self.pair([a, b]).map(Node::Or),
            (None, [a, b, c]) if name == operators::CONDITIONAL => return Ok(Node::If(Box::new([self.node(a)?, self.node(b)?, self.node(c)?]))),
            (None, [a]) if name == operators::LOGICAL_NOT => return self.boxed(a).map(Node::Not),
            (None, [a]) if name == operators::NEGATE => return self.boxed(a).map(Node::Negate),
            (None, [a, b]) if name == operators::INDEX => {
                let pair = self.pair([a, b])?;
                if let Node::Constant(Value::Text(field)) = &pair[1] {
                    self.known_field(&pair[0], field.as_str())?;
                }
                return Ok(Node::Index(pair));
            }
            (None, [a, b]) => {
                if let Some((_, binary)) = BINARY.iter().find(|(known, _)| *known == name) {
                    return Ok(Node::Binary(*binary, self.pair([a, b])?));
                }
            }
            _ => {}
        }
        match (name, call.target.as_deref(), call.args.as_slice()) {
            ("has", None, [field]) => match &field.expr {
                Expr::Select(select) => {
                    let operand = self.node(&select.operand)?;
                    self.known_field(&operand, &select.field)?;
                    Ok(Node::Has(Box::new(operand), select.field.clone()))
                }
                _ => Err("`has` asks for a field, as in has(body.ref)".to_owned()),
            },
            ("matches", Some(text), [pattern]) | ("matches", None, [text, pattern]) => {
                let Expr::Literal(LiteralValue::String(pattern)) = &pattern.expr else {
                    return Err("the pattern of `matches` must be written out, so that it is compiled once".to_owned());
                };
                let pattern = regex::RegexBuilder::new(pattern.inner())
                    .size_limit(MAX_PATTERN)
                    .dfa_size_limit(MAX_PATTERN)
                    .build()
                    .map_err(|why| format!("the pattern of `matches` is not good: {}", why.to_string().lines().last().unwrap_or_default()))?;
                Ok(Node::Matches(self.boxed(text)?, Box::new(pattern)))
            }
            (_, Some(range), [variable, rest @ ..]) if EACH.iter().any(|(known, _)| *known == name) => self.each(name, range, variable, rest),
            (_, target, args) => {
                let Some((_, function, wanted, method, plain)) = FUNCTIONS.iter().find(|(known, ..)| *known == name) else {
                    let known: Vec<&str> =
                        FUNCTIONS.iter().map(|(known, ..)| *known).chain(EACH.iter().map(|(known, _)| *known)).chain(["has", "matches"]).collect();
                    return Err(unknown("function", name, &known));
                };
                let exprs: Vec<&IdedExpr> = target.into_iter().chain(args).collect();
                if exprs.len() != wanted + 1 || (target.is_some() && !method) || (target.is_none() && !plain) {
                    let form = match (method, wanted) {
                        (true, 0) => format!("x.{name}()"),
                        (true, _) => format!("x.{name}(y)"),
                        (false, _) => format!("{name}(x)"),
                    };
                    return Err(format!("`{name}` is called like {form}"));
                }
                let nodes: Vec<Node> = exprs.into_iter().map(|expr| self.node(expr)).collect::<Result<_, _>>()?;
                Ok(Node::Call(*function, nodes))
            }
        }
    }

    fn each(&mut self, name: &str, range: &IdedExpr, variable: &IdedExpr, rest: &[IdedExpr]) -> Result<Node, String> {
        let Some((_, each)) = EACH.iter().find(|(known, _)| *known == name) else { return Err(format!("unknown function `{name}`")) };
        let Expr::Ident(local) = &variable.expr else {
            return Err(format!("the first argument of `{name}` is the name of a variable, as in x.{name}(item, …)"));
        };
        let range = self.node(range)?;
        self.locals.push(local.clone());
        let inside: Result<Vec<Node>, String> = rest.iter().map(|expr| self.node(expr)).collect();
        self.locals.pop();
        let mut inside = inside?.into_iter();
        match (inside.next(), inside.next(), inside.next(), each) {
            (Some(body), None, None, _) => Ok(Node::Each(*each, Box::new([range, body]))),
            (Some(condition), Some(value), None, Each::Map) => Ok(Node::MapIf(Box::new([range, condition, value]))),
            _ => Err(format!("`{name}` is called like x.{name}(item, …)")),
        }
    }
}

fn constant(literal: &LiteralValue) -> Result<Value<'static>, String> {
    Ok(match literal {
        LiteralValue::Null => Value::Null,
        LiteralValue::Boolean(truth) => Value::Bool(*truth.inner()),
        LiteralValue::Int(int) => Value::Int(*int.inner()),
        LiteralValue::UInt(uint) => Value::Uint(*uint.inner()),
        LiteralValue::Double(double) => Value::Double(*double.inner()),
        LiteralValue::String(text) => Value::made(text.inner()),
        LiteralValue::Bytes(_) => return Err("bytes are not known in conditions: write text, without the b".to_owned()),
    })
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(near) => format!("unknown {what} `{name}`: did you mean `{near}`?"),
        None => format!("unknown {what} `{name}`: known are {}", known.join(", ")),
    }
}
