//! What is wrong with a file its owner edits, where, and what to do about it.
//!
//! A [`Problem`] is placed by byte span in its [`Source`] and rendered with an excerpt. Values after `literal:` and passwords
//! in URLs are masked in every excerpt, so that a mistake beside a secret never prints it.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, renderer::DecorStyle};

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
    /// The marked value may be a secret: no excerpt shows it.
    pub(crate) hidden: bool,
}

impl Problem {
    pub(crate) fn error(key: impl Into<String>, span: Option<Range<usize>>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), key: key.into(), span, help: None, hidden: false }
    }

    pub(crate) fn warning(key: impl Into<String>, span: Option<Range<usize>>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(key, span, message) }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }
}

/// One line, for logs and JSON: `key: message (help)`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
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

    /// All problems with their excerpts, in the order of the file; `color` for a terminal.
    pub(crate) fn render(&self, problems: &[Problem], color: bool) -> String {
        let mut sorted: Vec<&Problem> = problems.iter().collect();
        sorted.sort_by_key(|p| (p.severity, p.span.as_ref().map_or(0, |s| s.start)));
        let hidden = problems.iter().filter(|p| p.hidden).filter_map(|p| p.span.clone());
        let masked = mask(&self.text, hidden);
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let mut out = String::new();
        for problem in sorted {
            let level = match problem.severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let mut group: Group<'_> = level.primary_title(problem.message.as_str()).elements(Vec::<Snippet<'_, annotate_snippets::Annotation<'_>>>::new());
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

/// The text with every literal secret, URL password and hidden place overwritten, length and lines kept.
fn mask(text: &str, hidden: impl Iterator<Item = Range<usize>>) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for span in hidden {
        let span = text.floor_char_boundary(span.start)..text.ceil_char_boundary(span.end);
        bytes[span].iter_mut().filter(|byte| !matches!(**byte, b'"' | b'\'' | b'\n')).for_each(|byte| *byte = b'*');
    }
    for (at, found) in text.match_indices("literal:") {
        let from = at + found.len();
        for byte in bytes[from..].iter_mut().take_while(|b| !matches!(**b, b'"' | b'\'' | b'\n')) {
            *byte = b'*';
        }
    }
    for (at, found) in text.match_indices("://") {
        let from = at + found.len();
        let rest = &text[from..];
        let end = rest.find(['"', '\'', '\n', '/', ' ']).unwrap_or(rest.len());
        if let Some(host) = rest[..end].rfind('@')
            && let Some(colon) = rest[..host].find(':')
        {
            bytes[from + colon + 1..from + host].fill(b'*');
        }
    }
    // Whole characters are overwritten between ASCII delimiters, so this stays UTF-8.
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_never_show_secrets() {
        let source = Source { name: "p.toml".into(), text: "a = \"literal:hünter2\"\nb = \"redis://u:pässword@h/0\"\n".into() };
        let problem = Problem::error("a", Some(4..20), "bad").help("do this");
        let other = Problem::warning("b", Some(27..45), "weak");
        let text = source.render(&[other, problem], false);
        assert!(!text.contains("nter2") && !text.contains("ssword"), "{text}");
        assert!(text.contains("--> p.toml:1:5") && text.contains("do this"), "{text}");
    }

    #[test]
    fn hidden_places_are_masked_in_every_excerpt() {
        let source = Source { name: "p.toml".into(), text: "\n\na = { s = \"hünter2\", t = 1 }\n".into() };
        let problem = Problem::error("a.s", Some(12..22), "bad").hidden();
        let other = Problem::error("a.t", Some(28..29), "bad too");
        let text = source.render(&[other, problem], false);
        assert!(!text.contains("nter2") && text.contains("p.toml:3:11") && text.matches("3 | a = {").count() == 2, "{text}");
    }

    #[test]
    fn positions_count_lines_and_characters() {
        let source = Source { name: String::new(), text: "ä\nbc".into() };
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position(4), (2, 2));
    }
}
