//! A proof that two conditions never hold together.

use super::{
    compile::{Binary, Node},
    value::Value,
};

/// What a condition demands of one field, whatever else it says.
struct Fact<'n> {
    path: String,
    /// The field is one of `values`; with `not`, it is none of them.
    values: Vec<&'n Value<'static>>,
    not: bool,
}

/// Some field is held to constants by both that have nothing in common.
///
/// Equality never fails, and where it is false it decides its `&&` even beside an error, so an error cannot let both hold.
pub(super) fn disjoint(a: &Node, b: &Node) -> bool {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    facts(a, false, &mut of_a);
    facts(b, false, &mut of_b);
    of_a.iter().any(|a| of_b.iter().any(|b| a.path == b.path && contradict(a, b)))
}

fn contradict(a: &Fact<'_>, b: &Fact<'_>) -> bool {
    let holds = |values: &[&Value<'static>], wanted: &Value<'static>| values.iter().any(|value| value.equals(wanted, &mut |_| ()));
    match (a.not, b.not) {
        (false, false) => !a.values.iter().any(|value| holds(&b.values, value)),
        (false, true) => a.values.iter().all(|value| holds(&b.values, value)),
        (true, false) => b.values.iter().all(|value| holds(&a.values, value)),
        (true, true) => false,
    }
}

fn facts<'n>(node: &'n Node, negated: bool, out: &mut Vec<Fact<'n>>) {
    match node {
        Node::Not(inner) => facts(inner, !negated, out),
        Node::And(pair) if !negated => pair.iter().for_each(|side| facts(side, false, out)),
        Node::Or(pair) if negated => pair.iter().for_each(|side| facts(side, true, out)),
        // `a == 1 || a == 2` is `a in [1, 2]`.
        Node::Or(pair) => {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            facts(&pair[0], false, &mut left);
            facts(&pair[1], false, &mut right);
            for mut fact in left.into_iter().filter(|fact| !fact.not) {
                if let Some(other) = right.iter().find(|other| !other.not && other.path == fact.path) {
                    fact.values.extend_from_slice(&other.values);
                    out.push(fact);
                }
            }
        }
        Node::Binary(Binary::Equal, pair) => equality(pair, negated, out),
        Node::Binary(Binary::NotEqual, pair) => equality(pair, !negated, out),
        Node::Binary(Binary::In, pair) => {
            if let (Some(path), Node::List(list)) = (path(&pair[0]), &pair[1])
                && let Some(values) = list.iter().map(constant).collect::<Option<Vec<_>>>()
            {
                out.push(Fact { path, values, not: negated });
            }
        }
        _ => {}
    }
}

fn equality<'n>(pair: &'n [Node; 2], not: bool, out: &mut Vec<Fact<'n>>) {
    let [a, b] = pair;
    if let Some((path, value)) = path(a).zip(constant(b)).or_else(|| path(b).zip(constant(a))) {
        out.push(Fact { path, values: vec![value], not });
    }
}

fn constant(node: &Node) -> Option<&Value<'static>> {
    match node {
        Node::Constant(value) => Some(value),
        _ => None,
    }
}

/// A field by name: two equal texts are the same field of one event. `now` and local variables are none.
fn path(node: &Node) -> Option<String> {
    match node {
        Node::Root(root) => Some(format!("{root:?}")),
        Node::Select(of, field) => Some(format!("{}.{field:?}", path(of)?)),
        Node::Index(pair) => match &pair[1] {
            Node::Constant(Value::Text(field)) => Some(format!("{}.{:?}", path(&pair[0])?, field.as_str())),
            Node::Constant(Value::Int(at)) => Some(format!("{}[{at}]", path(&pair[0])?)),
            _ => None,
        },
        _ => None,
    }
}
