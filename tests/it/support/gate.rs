//! The real program with a policy, in a folder of its own, on free ports.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    receiver::Receiver,
    sign, soon,
    tls::{Ca, Identity},
    tools, until,
    wire::{Reply, Wire},
};

/// What the admin API wants to see.
pub(crate) const ADMIN_TOKEN: &str = "an-admin-token-for-the-tests";

/// A gate to be started: the policy's frame stands here, the test adds its own part.
pub(crate) struct Setup {
    tls: bool,
    /// Lines of `[server.tls]`.
    tls_keys: String,
    server: String,
    limits: String,
    admin: String,
    state: String,
    log: String,
    policy: String,
    env: Vec<(String, String)>,
    files: Vec<(String, Vec<u8>)>,
    client_ca: Option<String>,
}

impl Setup {
    /// `policy` holds what follows the frame: routes, destinations, filters, each with its own heading.
    pub(crate) fn new(policy: impl Into<String>) -> Self {
        Self {
            tls: true,
            tls_keys: "cert = \"tls/cert.pem\"\nkey = \"tls/key.pem\"\n".into(),
            server: String::new(),
            limits: String::new(),
            admin: String::new(),
            state: String::new(),
            log: String::new(),
            policy: policy.into(),
            env: vec![("GITHUB_SECRET".into(), sign::SECRET.into()), ("HOOKLATCH_ADMIN_TOKEN".into(), ADMIN_TOKEN.into())],
            files: Vec::new(),
            client_ca: None,
        }
    }

    /// One GitHub route that delivers to `receiver`; `route` holds further keys of the route.
    pub(crate) fn github(receiver: &Receiver, route: &str) -> Self {
        Self::new(github_route(receiver, route))
    }

    /// Plain HTTP, for tests that write to the wire themselves.
    pub(crate) fn plain(mut self) -> Self {
        self.tls = false;
        self
    }

    /// More lines of `[server.tls]`.
    pub(crate) fn tls_keys(mut self, lines: &str) -> Self {
        self.tls_keys.push_str(lines);
        self.tls_keys.push('\n');
        self
    }

    /// These lines of `[server.tls]` instead of the tests' own certificate.
    pub(crate) fn tls_only(mut self, lines: &str) -> Self {
        self.tls_keys.clear();
        self.tls_keys(lines)
    }

    /// Lines of `[server]`.
    pub(crate) fn server(mut self, lines: &str) -> Self {
        self.server.push_str(lines);
        self.server.push('\n');
        self
    }

    /// Lines of `[server.limits]`.
    pub(crate) fn limits(mut self, lines: &str) -> Self {
        self.limits.push_str(lines);
        self.limits.push('\n');
        self
    }

    /// Lines of `[admin]`.
    pub(crate) fn admin_keys(mut self, lines: &str) -> Self {
        self.admin.push_str(lines);
        self.admin.push('\n');
        self
    }

    /// Lines of `[state]`.
    pub(crate) fn state(mut self, lines: &str) -> Self {
        self.state.push_str(lines);
        self.state.push('\n');
        self
    }

    /// A variable of the program's environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// A file beside the policy.
    pub(crate) fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.into(), content.into()));
        self
    }

    /// Client certificates of this CA are asked for.
    pub(crate) fn client_ca(mut self, ca: &Ca) -> Self {
        self.client_ca = Some(ca.pem());
        self
    }

    fn text(&self, policy: &str) -> String {
        let mut text = String::from("[server]\nlisten = [\"127.0.0.1:0\"]\n");
        text.push_str(&self.server);
        if self.tls {
            let _ = write!(text, "[server.tls]\n{}", self.tls_keys);
            if self.client_ca.is_some() {
                text.push_str("client_ca = \"tls/clients.pem\"\n");
            }
        } else {
            text.push_str("tls = false\n");
        }
        let _ = write!(text, "[server.limits]\n{}", self.limits);
        let _ = write!(text, "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"env:HOOKLATCH_ADMIN_TOKEN\"\n{}", self.admin);
        let _ = write!(text, "[state]\npath = \"state\"\n{}", self.state);
        let _ = write!(text, "[log]\nformat = \"json\"\naudit = \"audit.jsonl\"\n{}", self.log);
        text.push_str(policy);
        text
    }

    /// Starts the program and waits until it listens.
    pub(crate) async fn start(self) -> Gate {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let ca = self.tls.then(|| Ca::new("tests CA"));
        std::fs::create_dir(dir.path().join("tls")).expect("the folder is ours");
        std::fs::create_dir(dir.path().join("var")).expect("the folder is ours");
        if let Some(ca) = &ca {
            let Identity { cert, key } = ca.server(&["localhost", "hooks.example.com", "127.0.0.1"]);
            write(dir.path(), "tls/cert.pem", cert.as_bytes());
            write(dir.path(), "tls/key.pem", key.as_bytes());
        }
        if let Some(pem) = &self.client_ca {
            write(dir.path(), "tls/clients.pem", pem.as_bytes());
        }
        for (name, content) in &self.files {
            write(dir.path(), name, content);
        }
        write(dir.path(), "hooklatch.toml", self.text(&self.policy).as_bytes());
        let (process, listening) = Process::start(dir.path(), &self.env).await;
        Gate { setup: self, dir, ca, process, listening }
    }
}

/// One GitHub route that delivers to `receiver`, as policy text.
pub(crate) fn github_route(receiver: &Receiver, more: &str) -> String {
    format!(
        "[routes.github]\npath = \"/github\"\nverify = {{ provider = \"github\", secret = \"env:GITHUB_SECRET\" }}\ndeliver = \"{}\"\n{more}\n",
        receiver.url("/hooks")
    )
}

/// Writes a file beside the policy at once, as careful editors do: under another name, then renamed.
fn write(dir: &Path, name: &str, content: &[u8]) {
    let path = dir.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).expect("the folder is ours");
    }
    let new = path.with_extension("new");
    std::fs::write(&new, content).expect("the folder is ours");
    std::fs::rename(new, path).expect("the folder is ours");
}

pub(crate) struct Gate {
    setup: Setup,
    dir: TempDir,
    ca: Option<Ca>,
    process: Process,
    listening: Listening,
}

#[derive(Clone, Copy)]
struct Listening {
    address: SocketAddr,
    admin: SocketAddr,
}

struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Spawns the program; the addresses come from its line `listening`.
    async fn start(dir: &Path, env: &[(String, String)]) -> (Self, Listening) {
        let process = Self::spawn(dir, env);
        let lines = process.lines.clone();
        let mut process = process;
        let listening = until("the gate to listen", || {
            let found = lines.lock().expect("no thread panics with the log").iter().find_map(|line| listening(line));
            let ended = process.child.try_wait().expect("the child is ours");
            if let (None, Some(status)) = (found, ended) {
                panic!("the gate ended with {status}:\n{}", log_of(&lines));
            }
            async move { found }
        })
        .await;
        (process, listening)
    }

    fn spawn(dir: &Path, env: &[(String, String)]) -> Self {
        let mut child = tools::hooklatch(["run", "--config", "hooklatch.toml"])
            .current_dir(dir)
            .env("STATE_DIRECTORY", dir.join("var"))
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let lines = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().expect("stdout is piped"), lines.clone());
        collect(child.stderr.take().expect("stderr is piped"), lines.clone());
        Self { child, lines }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(stream: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { return };
            lines.lock().expect("no thread panics with the log").push(tools::text(&line));
        }
    });
}

fn log_of(lines: &Mutex<Vec<String>>) -> String {
    lines.lock().expect("no thread panics with the log").join("\n")
}

fn listening(line: &str) -> Option<Listening> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = if line["fields"].is_object() { &line["fields"] } else { &line };
    if fields["message"] != "listening" {
        return None;
    }
    let address = |name: &str| fields[name].as_str()?.parse().ok();
    Some(Listening { address: address("address")?, admin: address("admin")? })
}

impl Gate {
    pub(crate) fn address(&self) -> SocketAddr {
        self.listening.address
    }

    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.listening.admin
    }

    /// Who issued the gate's certificate; `None` for plain HTTP.
    pub(crate) fn ca(&self) -> Option<&Ca> {
        self.ca.as_ref()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}{path}", self.address().port())
    }

    /// The CA's certificate as a file, for programs that have to trust it.
    pub(crate) fn ca_file(&self) -> PathBuf {
        let path = self.path("ca.pem");
        std::fs::write(&path, self.ca.as_ref().map(Ca::pem).unwrap_or_default()).expect("the folder is ours");
        path
    }

    /// A path in the gate's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Everything the program printed so far.
    pub(crate) fn log(&self) -> String {
        log_of(&self.process.lines)
    }

    /// Puts a file beside the policy.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        write(self.dir.path(), name, content.as_ref());
    }

    /// Replaces the part of the policy that follows the frame.
    pub(crate) fn rewrite(&self, policy: &str) {
        self.write("hooklatch.toml", self.setup.text(policy));
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status().expect("Debian has `kill`");
        assert!(status.success(), "the gate's process is there");
    }

    /// Asks for a reload and waits until one more ended this way: `ok` or `refused`, as the metric says it.
    pub(crate) async fn reload(&self, result: &str) {
        let name = format!("hooklatch_config_reloads_total{{result=\"{result}\"}}");
        let before = self.metric(&name).await;
        self.signal("HUP");
        until(&format!("a reload that ends with `{result}`"), || async { (self.metric(&name).await > before).then_some(()) }).await;
    }

    /// Ends the program as a power button would end its process.
    pub(crate) fn kill(&mut self) {
        self.process.child.kill().expect("the child is ours");
        self.process.child.wait().expect("the child is ours");
    }

    /// Starts the program again with the same policy and state; its ports are new ones.
    pub(crate) async fn restart(&mut self) {
        let (process, listening) = Process::start(self.dir.path(), &self.setup.env).await;
        self.process = process;
        self.listening = listening;
    }

    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let child = &mut self.process.child;
        until("the gate to exit", || {
            let status = child.try_wait().expect("the child is ours");
            async move { status }
        })
        .await
    }

    /// One request to the admin listener.
    pub(crate) async fn admin(&self, path: &str, headers: &str) -> Reply {
        let mut wire = Wire::connect(self.admin_address()).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n").as_bytes()).await;
        soon("an answer of the admin listener", wire.reply()).await.unwrap_or_else(|| panic!("the admin listener answers\n{}", self.log()))
    }

    pub(crate) async fn metrics(&self) -> String {
        tools::text(&self.admin("/metrics", "").await.body)
    }

    /// One metric's value, by its name and labels as `/metrics` prints them; 0 where it is not there yet.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics().await;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.split(' ').next().unwrap_or("").parse().expect("a metric is a number"))
    }

    /// The audit lines so far.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("var/audit.jsonl")).unwrap_or_default();
        let mut lines: Vec<&str> = text.split('\n').collect();
        lines.pop(); // what follows the last line's end is being written
        lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("audit line {line:?}: {error}"))).collect()
    }

    /// The audit lines once there are `count` of them.
    pub(crate) async fn audited(&self, count: usize) -> Vec<Value> {
        until(&format!("{count} audit lines"), || async { Some(self.audit()).filter(|lines| lines.len() >= count) }).await
    }

    /// Memory that is the process's own, without the pages of its files, in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the gate is running");
        let value = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        value.and_then(|value| value.split_whitespace().next()?.parse().ok()).expect("Linux says how much memory a process has")
    }

    /// Processor time the process has used.
    pub(crate) fn cpu(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the gate is running");
        let spent = threads.flatten().filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(spent.sum())
    }
}
