//! A route's `deliver`, and which of its branches an event takes. Pure.

use std::{fmt, sync::Arc};

use crate::{
    condition::{Condition, Error, Scope},
    deliver::{self, Settings},
    event::Event,
    section::{Item, Section, nearest},
};

/// What a route does with its events, as the policy has it.
#[derive(Debug)]
pub(crate) struct Plan {
    branches: Vec<Branch>,
    /// The destination that the route names by its URL; named after the route.
    anonymous: Option<Settings>,
    unmatched: Unmatched,
    strip_credentials: bool,
}

/// One entry of `deliver`.
struct Branch {
    to: Arc<str>,
    when: Option<Condition>,
    required: bool,
}

/// `unmatched`: what becomes of an event that no branch takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unmatched {
    /// Acknowledged, and gone.
    #[default]
    Drop,
    /// 503 `no_destination`.
    Reject,
}

/// One delivery to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parcel {
    /// The entry of `deliver`, from 0.
    pub(crate) branch: usize,
    /// The destination's name; at most one parcel of an event has it.
    pub(crate) to: Arc<str>,
    /// Its answer is the sender's answer; at most one parcel of an event is.
    pub(crate) required: bool,
    /// The bearer credentials of the request stay behind.
    pub(crate) strip_credentials: bool,
}

/// What to do with one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    Parcels(Vec<Parcel>),
    Unmatched(Unmatched),
}

impl fmt::Debug for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Branch").field("to", &self.to).field("when", &self.when).field("required", &self.required).finish()
    }
}

/// Reads `deliver`, `unmatched` and `strip_credentials` of a route; `known` are the names of `[destinations]`.
pub(crate) fn read(route: &str, section: &Section<'_>, known: &[&str]) -> Option<Plan> {
    let unmatched = section.choice("unmatched", &[("drop", Unmatched::Drop), ("reject", Unmatched::Reject)]).unwrap_or_default();
    let strip_credentials = section.bool_or("strip_credentials", false);
    let Some(item) = section.item("deliver") else {
        section.problem(
            "deliver",
            format!("`{}.deliver` is missing", section.path()),
            "say where its events go, such as deliver = \"http://127.0.0.1:3000/hooks\"",
        );
        return None;
    };
    let mut anonymous = None;
    let branches = if item.is_array() {
        let items = item.items()?;
        if items.is_empty() {
            item.problem("`deliver` is empty", "name at least one destination");
            return None;
        }
        let read: Vec<Option<(Branch, Item<'_>)>> = items.iter().map(|item| read_branch(route, item, known, &mut anonymous)).collect();
        let branches = read.into_iter().collect::<Option<Vec<_>>>()?;
        prove_one_required(&branches)?;
        branches.into_iter().map(|(branch, _)| branch).collect()
    } else if item.is_table() {
        vec![read_branch(route, &item, known, &mut anonymous)?.0]
    } else {
        item.string()?;
        vec![Branch { to: read_to(route, &item, known, &mut anonymous)?, when: None, required: true }]
    };
    Some(Plan { branches, anonymous, unmatched, strip_credentials })
}

fn read_branch<'a>(route: &str, item: &Item<'a>, known: &[&str], anonymous: &mut Option<Settings>) -> Option<(Branch, Item<'a>)> {
    if item.as_str().is_some() {
        return Some((Branch { to: read_to(route, item, known, anonymous)?, when: None, required: true }, item.clone()));
    }
    let section = item.section()?;
    let to = match section.item("to") {
        Some(to) => to.string().and_then(|_| read_to(route, &to, known, anonymous)),
        None => {
            section.problem("to", "an entry of `deliver` without `to`", "name its destination: { to = \"billing\" }");
            None
        }
    };
    let when = section.item("when").map(|item| match Condition::compile(&item.string()?) {
        Ok(condition) => Some(condition),
        Err(why) => {
            item.problem(why, "");
            None
        }
    });
    match section.opt_string("mode").as_deref() {
        None | Some("proxy") => {}
        Some("queue") => section.problem("mode", "`mode = \"queue\"` is not built yet", "remove the key: events are forwarded at once"),
        Some(other) => section.problem("mode", format!("`{other}` is not known here"), "it is one of: proxy, queue"),
    }
    section.not_built("on_failure", "failed deliveries wait in the queue");
    section.not_built("order_by", "the queue keeps events in order");
    let required = section.bool_or("required", true);
    section.finish();
    let when = match when {
        Some(compiled) => Some(compiled?),
        None => None,
    };
    Some((Branch { to: to?, when, required }, item.clone()))
}

/// A name of `[destinations]`, or a URL.
fn read_to(route: &str, item: &Item<'_>, known: &[&str], anonymous: &mut Option<Settings>) -> Option<Arc<str>> {
    let text = item.as_str()?;
    if known.contains(&text) {
        return Some(text.into());
    }
    if deliver::looks_like_url(text) {
        if anonymous.is_some() {
            item.problem("a second URL in one route", "give it a name: [destinations.NAME] with url = …, and { to = \"NAME\" } here");
            return None;
        }
        // A destination of that name has its own connections and counts.
        let name = if known.contains(&route) { format!("route:{route}") } else { route.to_owned() };
        let settings = deliver::read_url(&name, item)?;
        *anonymous = Some(settings);
        return Some(name.into());
    }
    let help = match nearest(text, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => format!("there are no [destinations]: write a URL, or add [destinations.{text}]"),
        None => format!("there are: {}", known.join(", ")),
    };
    item.problem(format!("no destination is named `{text}`"), help);
    None
}

/// At most one required entry may hold for an event: of any two, the conditions have to exclude each other.
fn prove_one_required(branches: &[(Branch, Item<'_>)]) -> Option<()> {
    let mut good = Some(());
    for (at, (branch, item)) in branches.iter().enumerate().filter(|(_, (branch, _))| branch.required) {
        let rival = branches[..at].iter().position(|(other, _)| {
            let apart = matches!((&branch.when, &other.when), (Some(a), Some(b)) if a.excludes(b));
            other.required && !apart
        });
        if let Some(rival) = rival {
            good = None;
            let help = "add `required = false` to the one whose answer the sender need not get, or let both conditions hold one field to \
                        different constants, such as event.type == 'push' and event.type != 'push'";
            item.problem(format!("this entry and entry {} may both hold for an event, and both are required: only one can answer", rival + 1), help);
        }
    }
    good
}

impl Plan {
    /// The destination that the route names by its URL.
    pub(crate) fn anonymous(&self) -> Option<&Settings> {
        self.anonymous.as_ref()
    }

    /// The path parameters that its conditions name.
    pub(crate) fn path_params(&self) -> impl Iterator<Item = &String> {
        self.branches.iter().filter_map(|branch| branch.when.as_ref()).flat_map(Condition::path_params)
    }

    /// Whether a filter may choose this destination.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.branches.iter().any(|branch| *branch.to == *name)
    }

    /// The destinations whose answer a sender may wait for.
    pub(crate) fn required(&self) -> impl Iterator<Item = &Arc<str>> {
        self.branches.iter().filter(|branch| branch.required).map(|branch| &branch.to)
    }

    /// The branches that the event takes.
    ///
    /// A filter's choice goes before the policy's, among the same entries; conditions still count. A condition that fails takes its
    /// branch if that is required, and `failed` hears of it, with the branch's destination. Each destination gets the event once.
    pub(crate) fn choose(&self, event: &Event, scope: &Scope<'_>, mut failed: impl FnMut(&str, &Error)) -> Chosen {
        let mut parcels: Vec<Parcel> = Vec::new();
        let mut required_taken = false;
        for (at, branch) in self.branches.iter().enumerate() {
            if event.chosen.as_ref().is_some_and(|chosen| !chosen.iter().any(|name| **name == *branch.to)) {
                continue;
            }
            let holds = branch.when.as_ref().map_or(Ok(true), |when| when.matches(scope)).unwrap_or_else(|why| {
                failed(&branch.to, &why);
                branch.required
            });
            if !holds {
                continue;
            }
            // Two required ones hold at once only where an evaluation was cut short; the first answers, the other still gets the event.
            let required = branch.required && !required_taken;
            required_taken |= required;
            match parcels.iter_mut().find(|parcel| parcel.to == branch.to) {
                Some(same) => same.required |= required,
                None => parcels.push(Parcel { branch: at, to: Arc::clone(&branch.to), required, strip_credentials: self.strip_credentials }),
            }
        }
        if parcels.is_empty() { Chosen::Unmatched(self.unmatched) } else { Chosen::Parcels(parcels) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        deliver::tests::event,
        problem::Source,
        section::{Inputs, Reader},
    };

    const KNOWN: &[&str] = &["billing", "bus", "audit"];

    fn with<T>(text: &str, read: impl Fn(&Section<'_>) -> T) -> (T, Vec<String>) {
        let reader = Reader::new(Source { name: "p.toml".into(), text: text.into() }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let root = reader.root(&table);
        let got = read(&root);
        root.finish();
        (got, reader.problems().iter().map(ToString::to_string).collect())
    }

    fn plan(text: &str) -> Plan {
        let (plan, problems) = with(text, |section| read("github", section, KNOWN));
        assert!(problems.is_empty(), "{text}: {problems:?}");
        plan.expect("no problems")
    }

    fn check_bad(text: &str, want: &[&str]) {
        let (_, problems) = with(text, |section| read("github", section, KNOWN));
        assert_eq!(problems.len(), want.len(), "{text}: {problems:?}");
        for (problem, want) in problems.iter().zip(want) {
            assert!(problem.contains(want), "{text}: {problem}");
        }
    }

    /// Destinations with `!` behind the required one, and how often a condition failed.
    fn check(text: &str, body: &str, chosen: Option<&[&str]>, want: &[&str], failures: usize) {
        let mut event = event(body);
        event.chosen = chosen.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let scope = Scope::new(&event, Clock::hand(0).now());
        let mut failed = 0;
        let got = match plan(text).choose(&event, &scope, |_, _| failed += 1) {
            Chosen::Parcels(parcels) => parcels.iter().map(|parcel| format!("{}{}", parcel.to, if parcel.required { "!" } else { "" })).collect(),
            Chosen::Unmatched(how) => vec![format!("{how:?}")],
        };
        assert_eq!((got, failed), (want.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), failures), "{text} {body}");
    }

    #[test]
    fn one_destination_takes_all() {
        check("deliver = \"billing\"", "", None, &["billing!"], 0);
        check("deliver = \"http://127.0.0.1:3000/hooks\"", "", None, &["github!"], 0);
        check("deliver = [\"billing\"]", "", None, &["billing!"], 0);
        check("deliver = { to = \"billing\" }", "", None, &["billing!"], 0);
        assert_eq!(plan("deliver = \"http://h/\"").anonymous().map(|settings| settings.name.as_str()), Some("github"));
        assert!(plan("deliver = \"billing\"").anonymous().is_none());
    }

    #[test]
    fn conditions_pick_and_failures_take_what_is_required() {
        let two = "deliver = [{ when = \"body.n > 5\", to = \"billing\" }, { when = \"body.n > 5\", to = \"bus\", required = false }]";
        check(two, "{\"n\":6}", None, &["billing!", "bus"], 0);
        check(two, "{\"n\":5}", None, &["Drop"], 0);
        check(two, "{}", None, &["billing!"], 2);
        check(&format!("{two}\nunmatched = \"reject\""), "{\"n\":5}", None, &["Reject"], 0);
        let apart = "deliver = [{ when = \"body.n == 1\", to = \"billing\" }, { when = \"body.n == 2\", to = \"bus\" }, { to = \"audit\", required = false }]";
        check(apart, "{\"n\":1}", None, &["billing!", "audit"], 0);
        check(apart, "{\"n\":2}", None, &["bus!", "audit"], 0);
        check(apart, "{}", None, &["audit"], 0);
    }

    #[test]
    fn filters_choose_among_the_routes_own() {
        let three = "deliver = [{ to = \"billing\" }, { to = \"bus\", required = false }, { when = \"body.n == 1\", to = \"audit\", required = false }]";
        check(three, "{}", Some(&["bus", "audit"]), &["bus"], 0);
        check(three, "{\"n\":1}", Some(&["audit", "billing"]), &["billing!", "audit"], 0);
        check(three, "{}", Some(&[]), &["Drop"], 0);
        assert_eq!(["billing", "bus", "audit", "cash"].map(|name| plan(three).has(name)), [true, true, true, false]);
    }

    #[test]
    fn a_destination_gets_an_event_once() {
        let twice = "deliver = [{ to = \"bus\", required = false, when = \"body.n == 1\" }, { to = \"bus\" }]";
        check(twice, "{\"n\":1}", None, &["bus!"], 0);
        check(twice, "{}", None, &["bus!"], 0);
    }

    #[test]
    fn cut_evaluations_never_make_two_required() {
        let long = format!("[{}1]", "1,".repeat(300_000));
        let two = "deliver = [{ when = \"body.n == 1\", to = \"billing\" }, { when = \"body.n == 2\", to = \"bus\" }]";
        check(two, &long, None, &["billing!", "bus"], 2);
    }

    #[test]
    fn mistakes_are_named() {
        check_bad("", &["`.deliver` is missing"]);
        check_bad("deliver = []", &["`deliver` is empty"]);
        check_bad("deliver = \"biling\"", &["did you mean `billing`?"]);
        check_bad("deliver = [{ to = \"http://a/\" }, { to = \"http://b/\", required = false }]", &["a second URL"]);
        check_bad("deliver = [{ when = \"true\" }]", &["without `to`"]);
        check_bad(
            "deliver = [{ to = \"bus\", mode = \"queue\", order_by = \"/id\" }]",
            &["`mode = \"queue\"` is not built yet", "`order_by` is not built yet"],
        );
        check_bad("deliver = [{ to = \"bus\", mode = \"proxi\" }]", &["`proxi` is not known"]);
        check_bad("deliver = [{ to = \"bus\", on_failure = \"queue\" }]", &["`on_failure` is not built yet"]);
        check_bad("deliver = [{ to = \"bus\", wen = \"true\" }]", &["unknown key `wen`"]);
        check_bad("deliver = [{ to = \"bus\", when = \"evnt.type == 'x'\" }]", &["did you mean `event`?"]);
        check_bad("deliver = [{ to = \"billing\" }, { to = \"bus\" }]", &["deliver[1]: this entry and entry 1 may both hold"]);
        check_bad("deliver = [{ to = \"billing\", when = \"body.n > 1\" }, { to = \"bus\", when = \"body.n < 1\" }]", &["may both hold"]);
        check_bad("deliver = [{ to = \"billing\" }, { to = \"bus\", when = \"event.type == 'x'\" }]", &["may both hold"]);
        check_bad("deliver = 5", &["not a string"]);
    }
}
