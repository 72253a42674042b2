//! One table of the policy file, read key by key.
//!
//! Every getter records what is wrong in the [`Reader`] and goes on, so that one run shows all problems; a policy with any error is
//! never built, which is why a getter may hand out `None` or a default after recording one. [`Section::finish`] refuses the keys that
//! nobody asked for and names the nearest one that somebody did.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io::Read,
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use zeroize::Zeroizing;

use crate::{
    mask, pair,
    problem::{Problem, Severity, Source},
    secret::Secret,
};

/// The word of a route's `secret` for what its provider hands over by handshake.
const PAIRED: &str = "paired";

/// Where a policy's files and environment variables come from; remembers every file for the reload watcher.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    /// The folder of the policy file: certificates, schemas and filters are relative to it.
    base: PathBuf,
    /// State and logs are relative to this.
    state_dir: PathBuf,
    memory: Option<Memory>,
    files: RefCell<BTreeSet<PathBuf>>,
}

#[derive(Debug, Default)]
struct Memory {
    env: BTreeMap<String, String>,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Inputs {
    pub(crate) fn system(base: PathBuf, state_dir: PathBuf) -> Self {
        Self { base, state_dir, memory: None, files: RefCell::default() }
    }

    /// Files and environment variables held in memory: for presets, schemas made by the program, and tests.
    pub(crate) fn memory(env: &[(&str, &str)], files: &[(&str, &[u8])]) -> Self {
        Self {
            memory: Some(Memory {
                env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
                files: files.iter().map(|(k, v)| (PathBuf::from(k), v.to_vec())).collect(),
            }),
            ..Self::default()
        }
    }

    /// `path` as written in the policy, relative to the policy file's folder.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }

    /// `path` as written in the policy, relative to the state directory.
    pub(crate) fn resolve_state(&self, path: &str) -> PathBuf {
        self.state_dir.join(path)
    }

    /// The state directory; `None` where everything is held in memory.
    pub(crate) fn state_dir(&self) -> Option<&Path> {
        self.memory.is_none().then_some(&*self.state_dir)
    }

    pub(crate) fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        self.files.borrow_mut().insert(path.to_owned());
        match &self.memory {
            None => bounded(path),
            Some(memory) => memory.files.get(path).cloned().ok_or_else(|| std::io::ErrorKind::NotFound.into()),
        }
    }

    fn env(&self, name: &str) -> Option<String> {
        match &self.memory {
            None => std::env::var(name).ok(),
            Some(memory) => memory.env.get(name).cloned(),
        }
    }

    /// Every file that was asked for so far, there or not.
    pub(crate) fn files(&self) -> BTreeSet<PathBuf> {
        self.files.borrow().clone()
    }
}

/// The largest file that a policy may name, in bytes: a compiled filter is the largest sensible.
const LARGEST: u64 = 256 << 20;

/// A file's bytes; what is longer than [`LARGEST`], as a device without an end is, is an error.
pub(crate) fn bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "it has more than 256 MiB"));
    }
    Ok(bytes)
}

/// One file being read: its text, its problems so far.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) source: Source,
    pub(crate) inputs: Inputs,
    problems: RefCell<Vec<Problem>>,
}

impl Reader {
    pub(crate) fn new(source: Source, inputs: Inputs) -> Self {
        Self { source, inputs, problems: RefCell::default() }
    }

    /// Parses the text; syntax problems are recorded, all of them, and what could be read is handed out.
    pub(crate) fn parse(&self) -> Spanned<DeTable<'_>> {
        let (table, errors) = DeTable::parse_recoverable(&self.source.text);
        for error in errors {
            self.push(Problem::error("", error.span(), error.message().to_owned()));
        }
        table
    }

    pub(crate) fn root<'a>(&'a self, table: &'a Spanned<DeTable<'a>>) -> Section<'a> {
        Section::new(self, String::new(), table.get_ref(), 0..0)
    }

    pub(crate) fn push(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        self.problems.borrow().clone()
    }

    pub(crate) fn failed(&self) -> bool {
        self.problems.borrow().iter().any(|p| p.severity == Severity::Error)
    }
}

/// One table. `path` is its dotted name.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    reader: &'a Reader,
    path: String,
    table: &'a DeTable<'a>,
    span: Range<usize>,
    asked: RefCell<BTreeSet<String>>,
}

/// One value, for keys that take several forms.
#[derive(Clone, Debug)]
pub(crate) struct Item<'a> {
    reader: &'a Reader,
    path: String,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Section<'a> {
    fn new(reader: &'a Reader, path: String, table: &'a DeTable<'a>, span: Range<usize>) -> Self {
        Self { reader, path, table, span, asked: RefCell::default() }
    }

    pub(crate) fn inputs(&self) -> &'a Inputs {
        &self.reader.inputs
    }

    /// Dotted name, such as `routes.github.verify`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn lookup(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.table.get(key)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.lookup(key).is_some()
    }

    /// The keys that stand in the file, in its order.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.table.keys().map(|k| k.get_ref().to_string()).collect()
    }

    pub(crate) fn item(&self, key: &str) -> Option<Item<'a>> {
        self.lookup(key).map(|value| Item { reader: self.reader, path: self.key_path(key), value })
    }

    fn span_of(&self, key: &str) -> Option<Range<usize>> {
        self.table.get(key).map(|v| v.span()).or_else(|| (!self.span.is_empty()).then(|| self.span.clone()))
    }

    /// Records an error at a key's value, or at the table where the key is absent.
    pub(crate) fn problem(&self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        self.record(Problem::error(self.key_path(key), self.span_of(key), message), help.into());
    }

    /// Records a warning, likewise.
    pub(crate) fn warn(&self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        self.record(Problem::warning(self.key_path(key), self.span_of(key), message), help.into());
    }

    /// Records a warning that has a word of its own, likewise.
    pub(crate) fn warn_of(&self, code: &'static str, key: &str, message: impl Into<String>, help: impl Into<String>) {
        let warning = Problem::warning(self.key_path(key), self.span_of(key), message);
        self.record(Problem { code: Some(code), ..warning }, help.into());
    }

    /// Records an error of the table as a whole.
    pub(crate) fn itself(&self, message: impl Into<String>, help: impl Into<String>) {
        let span = (!self.span.is_empty()).then(|| self.span.clone());
        self.record(Problem::error(self.path.clone(), span, message), help.into());
    }

    fn record(&self, problem: Problem, help: String) {
        let value = problem.key.rsplit('.').next().and_then(|key| self.table.get(key)?.get_ref().as_str());
        let problem = Problem { message: mask::message(&problem.message, &problem.key, value).into_owned(), ..problem };
        self.reader.push(if help.is_empty() { problem } else { problem.help(help) });
    }

    fn missing(&self, key: &str) {
        self.problem(key, format!("`{}` is missing", self.key_path(key)), format!("add `{key} = …` to [{}]", self.path));
    }

    /// Refuses a key whose feature is part of the product but not of this release.
    pub(crate) fn not_built(&self, key: &str, what: &str) {
        if self.has(key) {
            self.problem(key, format!("`{key}` is not built yet: {what}"), "remove the key");
        }
    }

    // -- strings and words --

    pub(crate) fn opt_string(&self, key: &str) -> Option<String> {
        self.item(key)?.string()
    }

    pub(crate) fn string(&self, key: &str) -> Option<String> {
        if !self.has(key) {
            self.missing(key);
        }
        self.opt_string(key)
    }

    pub(crate) fn string_or(&self, key: &str, default: &str) -> String {
        self.opt_string(key).unwrap_or_else(|| default.to_owned())
    }

    /// An array of strings; empty where the key is absent.
    pub(crate) fn strings(&self, key: &str) -> Vec<String> {
        self.item(key).and_then(|item| item.strings()).unwrap_or_default()
    }

    /// One of a closed list of words.
    pub(crate) fn choice<T: Clone>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        self.item(key)?.choice(words)
    }

    // -- scalars --

    pub(crate) fn opt_bool(&self, key: &str) -> Option<bool> {
        self.item(key)?.bool()
    }

    pub(crate) fn bool_or(&self, key: &str, default: bool) -> bool {
        self.opt_bool(key).unwrap_or(default)
    }

    pub(crate) fn opt_u64(&self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        self.item(key)?.u64(range)
    }

    pub(crate) fn u64_or(&self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.opt_u64(key, range).unwrap_or(default)
    }

    /// A span of time such as `"30s"`, `"1h 30m"`, `"30d"`; a bare number is refused.
    pub(crate) fn opt_duration(&self, key: &str) -> Option<Duration> {
        self.item(key)?.duration()
    }

    pub(crate) fn duration_or(&self, key: &str, default: Duration) -> Duration {
        self.opt_duration(key).unwrap_or(default)
    }

    /// A size such as `"10MiB"`, or a number of bytes.
    pub(crate) fn opt_size(&self, key: &str) -> Option<u64> {
        self.item(key)?.size()
    }

    pub(crate) fn size_or(&self, key: &str, default: u64) -> u64 {
        self.opt_size(key).unwrap_or(default)
    }

    // -- tables --

    pub(crate) fn opt_section(&self, key: &str) -> Option<Section<'a>> {
        self.item(key)?.section()
    }

    /// The tables of a table, such as every `[routes.NAME]`, in the file's order.
    pub(crate) fn sections(&self, key: &str) -> Vec<(String, Section<'a>)> {
        let Some(parent) = self.opt_section(key) else { return Vec::new() };
        parent.keys().into_iter().filter_map(|name| parent.opt_section(&name).map(|section| (name, section))).collect()
    }

    // -- files and secrets --

    /// A path relative to the policy file, and the file's bytes.
    pub(crate) fn file(&self, key: &str) -> Option<(PathBuf, Vec<u8>)> {
        self.item(key)?.file()
    }

    /// The secrets under `secret` (one) or `secrets` (several); an error where there is none.
    pub(crate) fn secrets(&self) -> Option<Vec<Secret>> {
        match (self.item("secret"), self.item("secrets")) {
            (Some(one), None) => one.secrets_at(1),
            (None, Some(many)) => {
                let items = many.items()?;
                if items.is_empty() {
                    many.problem("`secrets` is empty", "name at least one secret: without one nothing can be verified");
                    return None;
                }
                let read: Vec<_> = items.iter().enumerate().map(|(i, item)| item.secrets_at(i + 1)).collect();
                let secrets: Vec<Secret> = read.into_iter().collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
                let mut labels = BTreeSet::new();
                if let Some(twice) = secrets.iter().find(|s| !labels.insert(s.label().clone())) {
                    many.problem(format!("two secrets are labelled `{}`", twice.label()), "give each its own label");
                    return None;
                }
                Some(secrets)
            }
            (Some(_), Some(_)) => {
                self.problem("secret", "`secret` and `secrets` exclude each other", "keep one of the two");
                None
            }
            (None, None) => {
                self.missing("secret");
                None
            }
        }
    }

    /// Whether `secret`, or one of `secrets`, is the one that `hooklatch pair` takes.
    pub(crate) fn pairs_secret(&self) -> bool {
        let many = self.item("secrets").filter(Item::is_array).and_then(|item| item.items()).unwrap_or_default();
        self.item("secret").iter().chain(&many).any(|item| item.as_str() == Some(PAIRED))
    }

    /// Refuses every key that was not asked for.
    pub(crate) fn finish(self) {
        let asked = self.asked.borrow();
        for (key, value) in self.table {
            let name = key.get_ref().as_ref();
            if asked.contains(name) {
                continue;
            }
            let known: Vec<&str> = asked.iter().map(String::as_str).collect();
            let help = match nearest(name, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => "remove it".to_owned(),
                None => format!("known here: {}", known.join(", ")),
            };
            let span = if key.span().is_empty() { value.span() } else { key.span() };
            self.reader.push(Problem::error(self.key_path(name), Some(span), format!("unknown key `{name}`")).help(help).hiding(mask::values(value)));
        }
    }
}

impl<'a> Item<'a> {
    pub(crate) fn problem(&self, message: impl Into<String>, help: impl Into<String>) {
        let message = mask::message(&message.into(), &self.path, self.as_str()).into_owned();
        let problem = Problem::error(self.path.clone(), Some(self.value.span()), message);
        let help = help.into();
        self.reader.push(if help.is_empty() { problem } else { problem.help(help) });
    }

    pub(crate) fn warn(&self, message: impl Into<String>, help: impl Into<String>) {
        self.reader.push(Problem::warning(self.path.clone(), Some(self.value.span()), message).help(help));
    }

    fn wrong(&self, wanted: &str) {
        let what = match self.value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        let help = match (self.value.get_ref(), wanted) {
            (DeValue::String(_), "an array") => "put it in brackets: [\"…\"]",
            (DeValue::String(_), "a whole number" | "true or false") => "write it without quotation marks",
            (_, "a span of time") => "write it like \"500ms\", \"30s\", \"5m\", \"1h 30m\" or \"30d\"",
            _ => "",
        };
        self.problem(format!("`{}` is {what}, not {wanted}", self.path), help);
    }

    pub(crate) fn as_str(&self) -> Option<&'a str> {
        self.value.get_ref().as_str()
    }

    pub(crate) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    pub(crate) fn is_array(&self) -> bool {
        self.value.get_ref().is_array()
    }

    pub(crate) fn as_bool(&self) -> Option<bool> {
        self.value.get_ref().as_bool()
    }

    pub(crate) fn string(&self) -> Option<String> {
        if self.as_str().is_none() {
            self.wrong("a string");
        }
        self.as_str().map(str::to_owned)
    }

    pub(crate) fn bool(&self) -> Option<bool> {
        if self.as_bool().is_none() {
            self.wrong("true or false");
        }
        self.as_bool()
    }

    pub(crate) fn u64(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let Some(integer) = self.value.get_ref().as_integer() else {
            self.wrong("a whole number");
            return None;
        };
        match u64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                self.problem(format!("`{}` is {}", self.path, integer.as_str()), format!("a whole number from {} to {} is wanted", range.start(), range.end()));
                None
            }
        }
    }

    pub(crate) fn duration(&self) -> Option<Duration> {
        let Some(text) = self.as_str() else {
            self.wrong("a span of time");
            return None;
        };
        match humantime::parse_duration(text) {
            Ok(span) if span <= Duration::from_secs(100 * 365 * 86_400) => Some(span),
            Ok(_) => {
                self.problem(format!("`{text}` is longer than a hundred years"), "");
                None
            }
            Err(why) => {
                self.problem(format!("`{text}` is not a span of time: {why}"), "write it like \"500ms\", \"30s\", \"5m\", \"1h 30m\" or \"30d\"");
                None
            }
        }
    }

    pub(crate) fn size(&self) -> Option<u64> {
        if self.value.get_ref().is_integer() {
            return self.u64(0..=1 << 50);
        }
        let Some(text) = self.as_str() else {
            self.wrong("a size");
            return None;
        };
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() <= 1 << 50 => Some(size.as_u64()),
            Ok(_) => {
                self.problem(format!("`{text}` is more than 1 PiB"), "");
                None
            }
            Err(_) => {
                self.problem(format!("`{text}` is not a size"), "write it like \"64KiB\", \"10MiB\" or \"1GiB\"");
                None
            }
        }
    }

    pub(crate) fn choice<T: Clone>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(value.clone());
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let help = match nearest(&text, &known) {
            Some(near) => format!("did you mean \"{near}\"? It is one of: {}", known.join(", ")),
            None => format!("it is one of: {}", known.join(", ")),
        };
        self.problem(format!("`{text}` is not known here"), help);
        None
    }

    /// The elements of an array.
    pub(crate) fn items(&self) -> Option<Vec<Item<'a>>> {
        let Some(array) = self.value.get_ref().as_array() else {
            self.wrong("an array");
            return None;
        };
        Some(array.iter().enumerate().map(|(i, value)| Item { reader: self.reader, path: format!("{}[{i}]", self.path), value }).collect())
    }

    pub(crate) fn strings(&self) -> Option<Vec<String>> {
        self.items()?.iter().map(Item::string).collect()
    }

    pub(crate) fn section(&self) -> Option<Section<'a>> {
        let Some(table) = self.value.get_ref().as_table() else {
            self.wrong("a table");
            return None;
        };
        Some(Section::new(self.reader, self.path.clone(), table, self.value.span()))
    }

    pub(crate) fn file(&self) -> Option<(PathBuf, Vec<u8>)> {
        let path = self.reader.inputs.resolve(&self.string()?);
        match self.reader.inputs.read(&path) {
            Ok(bytes) => Some((path, bytes)),
            Err(why) => {
                self.problem(format!("{} cannot be read: {why}", path.display()), "paths are relative to the policy file");
                None
            }
        }
    }

    /// The value as JSON, for the configuration handed to filters and for constants.
    pub(crate) fn json(&self) -> Option<serde_json::Value> {
        json(self.value.get_ref()).or_else(|| {
            self.problem("this value has no JSON form", "use strings, whole or finite numbers, booleans, arrays and tables");
            None
        })
    }

    /// The secrets of one place: one, or all that `hooklatch pair` took for the route, where the place says `"paired"`.
    fn secrets_at(&self, position: usize) -> Option<Vec<Secret>> {
        let route = self.path.strip_prefix("routes.").and_then(|path| path.rsplit_once(".verify.secret")).map(|(route, _)| route);
        let (Some(PAIRED), Some(route)) = (self.as_str(), route) else { return self.secret(position).map(|secret| vec![secret]) };
        let path = self.reader.inputs.resolve_state(&pair::file(route));
        let text = match self.reader.inputs.read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
                self.warn("no secret was taken yet, so that nothing verifies here", format!("let the provider hand it over: hooklatch pair {route}"));
                // Nobody knows it: whatever is signed with something else is refused.
                let unknown = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 32]>());
                return Some(vec![Secret::new(PAIRED, unknown.into_bytes(), None)]);
            }
            Err(why) => {
                self.problem(format!("the secret's file {} cannot be read: {why}", path.display()), "it was made by `hooklatch pair`");
                return None;
            }
        };
        let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|line| !line.iter().all(u8::is_ascii_whitespace)).collect();
        if lines.is_empty() {
            self.problem(format!("{} holds no secret", path.display()), format!("let the provider hand it over again: hooklatch pair {route}"));
            return None;
        }
        let label = |number: usize| if number == 0 { PAIRED.to_owned() } else { format!("{PAIRED}-{}", number + 1) };
        Some(lines.iter().enumerate().map(|(number, line)| Secret::new(label(number), line.to_vec(), None)).collect())
    }

    /// `"env:NAME"`, `"file:PATH"`, `"literal:TEXT"`, or `{ from, label, not_after }`; `position` from 1 names an unlabelled one.
    pub(crate) fn secret(&self, position: usize) -> Option<Secret> {
        let (from, label, not_after) = self.labelled(position)?;
        Some(Secret::new(label, from.secret_bytes()?, not_after))
    }

    /// What is no secret, such as a public key, likewise: `"env:NAME"`, `"file:PATH"` or the text itself, with its label and its last
    /// millisecond.
    pub(crate) fn open_text(&self, position: usize) -> Option<(Vec<u8>, String, Option<i64>)> {
        let (from, label, not_after) = self.labelled(position)?;
        let text = from.string()?;
        let bytes = match text.split_once(':') {
            Some(("env", name)) => from.variable(name)?,
            Some(("file", name)) => from.contents(name, "file")?,
            _ => text.into_bytes(),
        };
        Some((bytes, label, not_after))
    }

    /// Records an error at a value that may be a secret: it is overwritten wherever the file is shown.
    pub(crate) fn hidden_problem(&self, message: impl Into<String>, help: impl Into<String>) {
        self.reader.push(Problem::error(self.path.clone(), Some(self.value.span()), message).help(help.into()).hidden());
    }

    /// A value, or `{ from, label, not_after }`: where it stands, its label, and the last millisecond that it counts.
    fn labelled(&self, position: usize) -> Option<(Item<'a>, String, Option<i64>)> {
        let mut label = format!("#{position}");
        let mut not_after = None;
        if !self.is_table() {
            return Some((self.clone(), label, not_after));
        }
        let section = self.section()?;
        if let Some(text) = section.opt_string("label") {
            if text.is_empty() || text.len() > 64 || !text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
                section.problem("label", format!("`{text}` is not a label"), "1 to 64 of letters, digits, `-`, `_`, `.`");
            }
            label = text;
        }
        if let Some(item) = section.item("not_after") {
            not_after = Some(item.date_end()?);
        }
        let Some(from) = section.item("from") else {
            section.missing("from");
            return None;
        };
        section.finish();
        Some((from, label, not_after))
    }

    fn variable(&self, name: &str) -> Option<Vec<u8>> {
        let value = self.reader.inputs.env(name);
        if value.is_none() {
            self.problem(format!("the environment variable {name} is not set"), format!("set it before the start: export {name}=…"));
        }
        value.map(String::into_bytes)
    }

    fn contents(&self, name: &str, what: &str) -> Option<Vec<u8>> {
        let path = self.reader.inputs.resolve(name);
        match self.reader.inputs.read(&path) {
            Ok(bytes) => Some(bytes),
            Err(why) => {
                self.problem(format!("the {what} {} cannot be read: {why}", path.display()), "paths are relative to the policy file");
                None
            }
        }
    }

    fn secret_bytes(&self) -> Option<Vec<u8>> {
        // Whatever stands here instead of a secret's place may be the secret itself.
        let misplaced = || {
            let problem = Problem::error(self.path.clone(), Some(self.value.span()), "a secret is `env:NAME`, `file:PATH` or `literal:TEXT`");
            self.reader.push(problem.help("say where it comes from").hidden());
        };
        let Some(text) = self.as_str() else {
            misplaced();
            return None;
        };
        let bytes = match text.split_once(':') {
            Some(("env", name)) => self.variable(name)?,
            Some(("file", name)) => {
                let mut bytes = self.contents(name, "secret's file")?;
                if bytes.last() == Some(&b'\n') {
                    bytes.pop();
                    if bytes.last() == Some(&b'\r') {
                        bytes.pop();
                    }
                }
                bytes
            }
            Some(("literal", value)) => {
                self.warn("a secret stands in the policy file", "use `env:NAME` or `file:PATH`, so that the policy can be shared and reviewed");
                value.as_bytes().to_vec()
            }
            _ => {
                misplaced();
                return None;
            }
        };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            self.problem("this secret is empty or blank", "an empty secret would let everybody in");
            return None;
        }
        Some(bytes)
    }

    /// A date or date-time as the last millisecond it still covers (a bare date: to its end, UTC).
    fn date_end(&self) -> Option<i64> {
        let Some(found) = self.value.get_ref().as_datetime() else {
            self.wrong("a date such as 2026-12-01 or 2026-12-01T12:00:00Z");
            return None;
        };
        let text = found.to_string();
        let read = if found.time.is_none() {
            let format = time::macros::format_description!("[year]-[month]-[day]");
            time::Date::parse(&text, &format).ok().map(|date| (date.midnight().assume_utc(), 86_400_000 - 1))
        } else {
            let zoned = if found.offset.is_none() { format!("{text}Z") } else { text.clone() };
            time::OffsetDateTime::parse(&zoned, &time::format_description::well_known::Rfc3339).ok().map(|at| (at, 0))
        };
        match read {
            Some((at, rest)) => i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok().map(|ms| ms + rest),
            None => {
                self.problem(format!("`{text}` is not a date"), "write it like 2026-12-01 or 2026-12-01T12:00:00Z");
                None
            }
        }
    }
}

fn json(value: &DeValue<'_>) -> Option<serde_json::Value> {
    Some(match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()?.into(),
        DeValue::Float(number) => serde_json::Number::from_f64(number.as_str().replace('_', "").parse().ok()?)?.into(),
        DeValue::Boolean(truth) => (*truth).into(),
        DeValue::Datetime(at) => at.to_string().into(),
        DeValue::Array(array) => array.iter().map(|v| json(v.get_ref())).collect::<Option<Vec<_>>>()?.into(),
        DeValue::Table(table) => {
            let pairs: Option<serde_json::Map<_, _>> = table.iter().map(|(k, v)| Some((k.get_ref().to_string(), json(v.get_ref())?))).collect();
            pairs?.into()
        }
    })
}

/// The known word that was probably meant.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(word, k), *k))
        .filter(|(distance, k)| *distance <= (k.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(text: &str) -> Reader {
        let inputs = Inputs::memory(&[("SECRET", "s3cret"), ("BLANK", " ")], &[("key", b"line\r\n")]);
        Reader::new(Source { name: "test.toml".into(), text: text.into() }, inputs)
    }

    fn check(text: &str, read: impl Fn(&Section<'_>), want: &[&str]) {
        let reader = reader(text);
        let table = reader.parse();
        let root = reader.root(&table);
        read(&root);
        root.finish();
        let got: Vec<String> = reader.problems().iter().map(ToString::to_string).collect();
        assert_eq!(got, want, "{text}");
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        check("lissten = 1", |s| drop(s.opt_string("listen")), &["lissten: unknown key `lissten` (did you mean `listen`?)"]);
    }

    #[test]
    fn scalars_say_what_they_want() {
        check(
            "a = 5",
            |s| assert!(s.opt_duration("a").is_none()),
            &["a: `a` is a whole number, not a span of time (write it like \"500ms\", \"30s\", \"5m\", \"1h 30m\" or \"30d\")"],
        );
        check("a = -1", |s| assert!(s.opt_u64("a", 0..=9).is_none()), &["a: `a` is -1 (a whole number from 0 to 9 is wanted)"]);
        check("a = \"1x\"", |s| assert!(s.opt_size("a").is_none()), &["a: `1x` is not a size (write it like \"64KiB\", \"10MiB\" or \"1GiB\")"]);
        check("", |s| drop(s.string("a")), &["a: `a` is missing (add `a = …` to [])"]);
    }

    #[test]
    fn secrets_are_read_and_blank_ones_refused() {
        let text = "secrets = [\"env:SECRET\", { from = \"file:key\", label = \"old\", not_after = 2026-12-01 }]";
        let reader = reader(text);
        let table = reader.parse();
        let secrets = reader.root(&table).secrets().expect("both are there");
        assert_eq!((secrets[0].expose(), &**secrets[0].label()), (&b"s3cret"[..], "#1"));
        assert_eq!((secrets[1].expose(), &**secrets[1].label()), (&b"line"[..], "old"));
        assert_eq!(secrets[1].not_after(), Some(1_796_169_599_999));
        assert_eq!(format!("{secrets:?}"), "[Secret(#1, [redacted]), Secret(old, [redacted])]");
        check("secret = \"env:BLANK\"", |s| drop(s.secrets()), &["secret: this secret is empty or blank (an empty secret would let everybody in)"]);
        check("secret = \"s3cret\"", |s| drop(s.secrets()), &["secret: a secret is `env:NAME`, `file:PATH` or `literal:TEXT` (say where it comes from)"]);
    }
}
