//! What is wrong with a file its owner edits, where, and what to do about it.
//!
//! A [`Problem`] is placed by byte span in its [`Source`] and rendered with an excerpt. An excerpt shows of the policy only what
//! [`mask`] lets everybody see, so that a mistake beside a secret never prints it.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, renderer::DecorStyle};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::mask;

/// A text that was read, and the name to show for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    Error,
    Warning,
}

/// One thing that is wrong or weak, for whoever edits the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    /// Lower case, no full stop.
    pub(crate) message: String,
    /// Dotted path of the key, such as `routes.github.verify.secret`; empty for the whole file.
    pub(crate) key: String,
    pub(crate) span: Option<Range<usize>>,
    /// What to do.
    pub(crate) help: Option<String>,
    /// What may be a secret although the policy's rules know nothing of it: no excerpt shows it.
    pub(crate) hidden: Vec<Range<usize>>,
    /// The line of `span`, where [`Source::place`] told it.
    pub(crate) line: Option<usize>,
    /// The word by which documents and scripts know it, such as `shared-secret`.
    pub(crate) code: Option<&'static str>,
}

impl Problem {
    pub(crate) fn error(key: impl Into<String>, span: Option<Range<usize>>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), key: key.into(), span, help: None, hidden: Vec::new(), line: None, code: None }
    }

    pub(crate) fn warning(key: impl Into<String>, span: Option<Range<usize>>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(key, span, message) }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The marked value may be a secret.
    pub(crate) fn hidden(self) -> Self {
        let hidden = self.span.iter().cloned().collect();
        Self { hidden, ..self }
    }

    /// These values may be secrets.
    pub(crate) fn hiding(self, hidden: Vec<Range<usize>>) -> Self {
        Self { hidden, ..self }
    }
}

/// One line, for logs and JSON: `key: [code] message (help)`, with `line N: ` before it where the line was told.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if let Some(code) = self.code {
            write!(f, "[{code}] ")?;
        }
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, " ({help})")?;
        }
        Ok(())
    }
}

impl Source {
    /// Line and column, both from 1, of a byte offset.
    pub(crate) fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(offset.min(self.text.len()))];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }

    /// Tells a problem its place: where it has none, that of its key, or of the nearest table around it that stands in the text.
    pub(crate) fn place(&self, mut problem: Problem) -> Problem {
        if problem.span.is_none() && !problem.key.is_empty() {
            let (table, _) = DeTable::parse_recoverable(&self.text);
            problem.span = find(table.get_ref(), &problem.key);
        }
        problem.line = problem.span.as_ref().map(|span| self.position(span.start).0);
        problem
    }

    /// All problems with their excerpts, in the order of the file; `color` for a terminal.
    pub(crate) fn render(&self, problems: &[Problem], color: bool) -> String {
        let mut sorted: Vec<&Problem> = problems.iter().collect();
        sorted.sort_by_key(|p| (p.severity, p.span.as_ref().map_or(0, |s| s.start)));
        let masked = covered(mask::text(&self.text), problems.iter().flat_map(|p| &p.hidden).cloned());
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let mut out = String::new();
        for problem in sorted {
            let level = match problem.severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let title = level.primary_title(problem.message.as_str());
            let title = match problem.code {
                Some(code) => title.id(code),
                None => title,
            };
            let mut group: Group<'_> = title.elements(Vec::<Snippet<'_, annotate_snippets::Annotation<'_>>>::new());
            if let Some(span) = &problem.span {
                let end = masked.floor_char_boundary(span.end);
                let start = masked.floor_char_boundary(span.start.min(end));
                // Only the lines that are marked: to look through the whole file for each of many problems takes long.
                let from = masked[..start].rfind('\n').map_or(0, |at| at + 1);
                let to = masked[end..].find('\n').map_or(masked.len(), |at| end + at);
                let mark = AnnotationKind::Primary.span(start - from..end - from);
                group = group.element(Snippet::source(&masked[from..to]).line_start(self.position(start).0).path(self.name.as_str()).annotation(mark));
            } else {
                let place = if problem.key.is_empty() { self.name.clone() } else { format!("{}: {}", self.name, problem.key) };
                group = group.element(Level::NOTE.message(format!("in {place}")));
            }
            if let Some(help) = &problem.help {
                group = group.element(Level::HELP.message(help.as_str()));
            }
            out.push_str(&renderer.render(&[group]));
            out.push_str("\n\n");
        }
        out
    }
}

/// The span of the value at a dotted path such as `routes.a.deliver[1]`, else of the last table or value on the way to it.
fn find(table: &DeTable<'_>, path: &str) -> Option<Range<usize>> {
    // A name may hold dots itself: the longest that fits is meant.
    let fits = |name: &str| path.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    let (name, rest, value) = table.iter().filter_map(|(key, value)| Some((key, fits(key.get_ref())?, value))).max_by_key(|(key, ..)| key.get_ref().len())?;
    let span = if value.span().is_empty() { name.span() } else { value.span() };
    below(value, rest).or((!span.is_empty()).then_some(span))
}

fn below(value: &Spanned<DeValue<'_>>, path: &str) -> Option<Range<usize>> {
    match value.get_ref() {
        _ if path.is_empty() => None,
        DeValue::Table(table) => find(table, path.strip_prefix('.')?),
        DeValue::Array(items) => {
            let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
            let item = items.get(index.parse::<usize>().ok()?)?;
            below(item, rest).or(Some(item.span()))
        }
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => None,
    }
}

/// The text with these places overwritten, length, lines and quotation marks kept.
fn covered(text: String, places: impl Iterator<Item = Range<usize>>) -> String {
    let mut bytes = text.into_bytes();
    for place in places {
        let cover = bytes.get_mut(place).into_iter().flatten();
        cover.filter(|byte| !matches!(**byte, b'"' | b'\'' | b'\n')).for_each(|byte| *byte = b'*');
    }
    // Spans end between characters; were one wrong, no excerpt is better than a secret.
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_never_show_secrets() {
        let text = "[destinations.a]\nurl = \"http://u:pässword@h/0\"\n[routes.a.verify]\nsecret = \"literal:hünter2\"\n";
        let source = Source { name: "p.toml".into(), text: text.into() };
        let at = |what: &str| text.find(what).map(|from| from..from + what.len());
        let problem = Problem::error("routes.a.verify.secret", at("\"literal:hünter2\""), "bad").help("do this");
        let other = Problem::warning("destinations.a.url", at("\"http://u:pässword@h/0\""), "weak");
        let text = source.render(&[other, problem], false);
        assert!(!text.contains("nter2") && !text.contains("ssword"), "{text}");
        assert!(text.contains("--> p.toml:4:10") && text.contains("do this"), "{text}");
    }

    #[test]
    fn hidden_places_are_masked_in_every_excerpt() {
        let source = Source { name: "p.toml".into(), text: "\n\nserver = { s = \"hünter2\", t = 1 }\n".into() };
        let problem = Problem::error("server.s", Some(17..27), "bad").hidden();
        let other = Problem::error("server.t", Some(33..34), "bad too");
        let text = source.render(&[other, problem], false);
        assert!(!text.contains("nter2") && text.contains("p.toml:3:16") && text.matches("3 | server = {").count() == 2, "{text}");
    }

    #[test]
    fn problems_find_their_places() {
        let text = "[filters.a]\nconfig = { x = 1 }\n[filters.\"a.b\"]\n[routes.r]\ndeliver = [\n  { to = \"x\" },\n  \"y\",\n]\n";
        let source = Source { name: "p.toml".into(), text: text.into() };
        let check = |key: &str, want: &str, line: usize| {
            let placed = source.place(Problem::error(key, None, "bad"));
            assert_eq!((placed.span.map(|span| &text[span]), placed.line), (Some(want), Some(line)), "{key}");
        };
        check("filters.a.config", "{ x = 1 }", 2);
        check("filters.a.config.x", "1", 2);
        check("filters.a.component", "[filters.a]", 1);
        check("filters.a.b", "[filters.\"a.b\"]", 3);
        check("filters.a.b.reuse", "[filters.\"a.b\"]", 3);
        check("routes.r.deliver[1]", "\"y\"", 7);
        check("routes.r.deliver[0].to", "\"x\"", 6);
        let nowhere = source.place(Problem::error("server.listen", None, "bad"));
        assert_eq!((nowhere.span, nowhere.line), (None, None));
        assert_eq!(source.place(Problem::error("filters.a.reuse", None, "bad")).to_string(), "line 1: filters.a.reuse: bad");
    }

    #[test]
    fn positions_count_lines_and_characters() {
        let source = Source { name: String::new(), text: "ä\nbc".into() };
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position(4), (2, 2));
    }
}
