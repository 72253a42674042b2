//! Config to a running gate: opens disk, filters, sockets; reload, drain.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tracing::{info, warn};

use crate::{
    admin,
    capture::live,
    clock::Clock,
    config::{self, Config},
    deliver,
    event::{Call, Conn, EventId},
    filter,
    keys::Keys,
    listen::{self, Fault, Listener, Serve, budget::Budget},
    observe::{
        self,
        audit::{self, Audit, Decision, Line},
        events,
        metrics::{Metrics, RouteMetrics},
    },
    pair::Pairings,
    pipeline::{self, Trail},
    policy::{Opener, Policy},
    problem::Problem,
    ranges,
    reject::Reject,
    respond,
    state::State,
    watch::Watch,
};

/// The running gate: what every request reaches.
pub(crate) struct Gate {
    pub(crate) clock: Clock,
    pub(crate) policy: ArcSwap<Policy>,
    pub(crate) state: State,
    pub(crate) budget: Arc<Budget>,
    pub(crate) audit: Audit,
    /// The last refused events, where the policy keeps them.
    pub(crate) refused: Arc<live::Refused>,
    /// Deliveries that go on without their sender.
    pub(crate) afterwork: deliver::Afterwork,
    pub(crate) pairings: Arc<Pairings>,
    /// For requests that no route took.
    unrouted: RouteMetrics,
    metrics: Arc<Metrics>,
}

impl Gate {
    /// The audit line of a call, as far as its head tells.
    fn line(&self, id: EventId, conn: &Conn, head: Option<&http::request::Parts>, time_ms: i64) -> Line {
        let mut line = Line::new(id, time_ms, Decision::Aborted);
        line.peer = Some(conn.peer);
        line.policy = self.policy.load().generation;
        if let Some(head) = head {
            line.method = Some(head.method.clone());
            line.path = head.uri.path().to_owned();
            line.query = head.uri.query().map(audit::query_names).unwrap_or_default();
            line.host = head
                .uri
                .host()
                .map(str::to_owned)
                .or_else(|| head.headers.get(http::header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned()));
        }
        line
    }

    /// Ends a request: its metrics, its log line, its audit line.
    fn decided(&self, trail: Trail, decision: Decision, status: u16) {
        let now = self.clock.mono();
        let Trail { mut line, route, started, .. } = trail;
        line.decision = decision;
        line.status = status;
        line.took = now.since(started);
        let metrics = route.as_ref().map_or(&self.unrouted, |route| &route.metrics);
        events::decided(&self.audit, metrics, line, now);
    }
}

/// A request until it is decided. Dropped before that with its task, it is told as aborted: its sender gets no answer.
struct Undecided<'g> {
    gate: &'g Gate,
    trail: Option<Trail>,
}

impl Undecided<'_> {
    fn decided(mut self, decision: Decision, status: u16) {
        if let Some(trail) = self.trail.take() {
            self.gate.decided(trail, decision, status);
        }
    }
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        // Of a panic `Serve::panicked` tells.
        if let Some(mut trail) = self.trail.take().filter(|_| !std::thread::panicking()) {
            trail.line.detail = "cut off: the gate stopped before there was an answer".into();
            self.gate.decided(trail, Decision::Aborted, 0);
        }
    }
}

impl Serve for Gate {
    async fn call(self: Arc<Self>, call: Box<Call>) -> Response<Full<Bytes>> {
        let id = call.id;
        let policy = self.policy.load_full();
        let line = self.line(id, &call.conn, Some(&call.head), call.started.wall_ms);
        let mut undecided = Undecided { gate: &self, trail: None };
        let trail = undecided.trail.insert(Trail { line, route: None, started: call.started.mono, refused: None });
        trail.line.policy = policy.generation;
        let result = if self.audit.accepting() { pipeline::run(&self, &policy, call, trail).await } else { Err(pipeline::unaudited()) };
        let (response, decision) = match result {
            Ok(outcome) => {
                let ending = outcome.ending;
                (respond::outcome(outcome, trail.line.event_id), Decision::Ended(ending))
            }
            Err(why) => {
                let mut response = respond::refusal(&why, trail.line.event_id);
                if response.status() == http::StatusCode::UNAUTHORIZED && trail.route.as_ref().is_some_and(|route| route.verify.refuses_bare()) {
                    response = respond::bare(response);
                }
                let reason = why.reason;
                trail.line.detail = why.detail;
                (response, Decision::Refused(reason))
            }
        };
        undecided.decided(decision, response.status().as_u16());
        response
    }

    fn refuse(&self, call: Call, why: Reject) -> Response<Full<Bytes>> {
        let mut line = self.line(call.id, &call.conn, Some(&call.head), call.started.wall_ms);
        let response = respond::refusal(&why, call.id);
        line.detail = why.detail;
        self.decided(Trail { line, route: None, started: call.started.mono, refused: None }, Decision::Refused(why.reason), response.status().as_u16());
        response
    }

    fn panicked(&self, id: EventId, conn: &Conn) -> Response<Full<Bytes>> {
        tracing::error!(event = %id, "answering a request panicked: this is a defect of the gate, please report it");
        let response = respond::internal(id);
        let mut line = self.line(id, conn, None, self.clock.now().wall_ms);
        line.detail = "the gate failed while it answered".into();
        self.decided(Trail { line, route: None, started: self.clock.mono(), refused: None }, Decision::Aborted, response.status().as_u16());
        response
    }

    fn afterwork(&self) -> usize {
        self.afterwork.len()
    }

    fn fault(&self, peer: std::net::SocketAddr, fault: Fault, detail: &str) {
        events::connection_failed(&self.audit, &self.unrouted, &self.metrics, peer, fault, detail, self.clock.now());
    }
}

/// Why the gate does not start; said once, with what to do.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The policy has errors; they are rendered.
    Policy(String),
    /// Something that the policy names cannot be opened.
    Open(Vec<Problem>),
    /// The same, rendered.
    Opening(String),
    /// There is no policy, or it cannot be read.
    Unreadable(String),
    /// Something else, in words.
    Start(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(text) | Self::Opening(text) => f.write_str(text),
            Self::Open(problems) => problems.iter().try_for_each(|problem| writeln!(f, "{problem}")),
            Self::Unreadable(text) | Self::Start(text) => f.write_str(text),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Open(vec![problem])
    }
}

/// Why a reload left the old policy in force.
#[derive(Debug)]
struct Refused(Vec<Problem>);

/// Everything a reload touches.
struct Running {
    path: PathBuf,
    /// The config in force, for what a reload may not change.
    config: Config,
    gate: Arc<Gate>,
    opener: Arc<Opener>,
    control: Arc<listen::Control>,
    admin: Option<admin::Server>,
    readiness: Arc<admin::Readiness>,
    state_dir: PathBuf,
}

/// A reload that somebody waits for.
type Asked = tokio::sync::oneshot::Sender<admin::Reloaded>;

/// Runs the gate until it is told to stop. Returns after the drain.
pub(crate) fn run(path: &Path, ready_file: Option<&Path>) -> Result<(), Failure> {
    let clock = Clock::system();
    let read = config::load(path).map_err(Failure::Unreadable)?;
    let shown = read.source.render(&read.problems, std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let Some(config) = read.config else { return Err(Failure::Policy(shown)) };
    observe::setup::start(&config.log);
    if !read.problems.is_empty() {
        // Only warnings are left here.
        if config.log.for_people() {
            anstream::eprint!("{shown}");
        } else {
            read.problems.iter().for_each(|problem| warn!(policy = %path.display(), "{}", read.source.place(problem.clone())));
        }
    }
    let state_dir = config::state_directory(path);
    make_private(&state_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("hooklatch-control")
        .enable_all()
        .build()
        .map_err(|why| Failure::Start(format!("the control runtime cannot start: {why}")))?;
    let result = runtime.block_on(serve(path, config, state_dir, clock, ready_file));
    // Blocking work that is still under way (a compilation for a reload) must not keep a stopped gate alive.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result.map_err(|why| match why {
        Failure::Open(problems) => {
            let placed: Vec<Problem> = problems.into_iter().map(|problem| read.source.place(problem)).collect();
            Failure::Opening(read.source.render(&placed, std::io::IsTerminal::is_terminal(&std::io::stderr())))
        }
        other => other,
    })
}

/// What opening the policy would say, without touching sockets or state: for `check`.
pub(crate) fn try_out(config: &Config) -> Vec<Problem> {
    let clock = Clock::system();
    let metrics = Metrics::with_clock(env!("CARGO_PKG_VERSION"), clock.clone());
    let keys = Keys::new(None, clock.clone(), metrics.clone());
    let opener = Opener::new(clock, metrics, filter::Engine::new(None), Arc::default(), keys);
    opener.open(config, 1).err().unwrap_or_default()
}

/// The state directory, for this user alone.
fn make_private(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|why| Failure::Start(format!("the state directory {} cannot be made: {why}; set STATE_DIRECTORY to one that can be written", dir.display())))
}

async fn serve(path: &Path, config: Config, state_dir: PathBuf, clock: Clock, ready_file: Option<&Path>) -> Result<(), Failure> {
    // From here on: what changes while the gate starts is taken up once it runs.
    let watch = Watch::new(&config.files);
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let state = {
        let metrics = metrics.clone();
        let (settings, clock) = (config.state.clone(), clock.clone());
        // Opening reads the whole store: not on the runtime.
        blocking(move || State::open(&settings, clock, Arc::new(move |op| metrics.state_error(op)))).await?.map_err(|why| Failure::Start(why.to_string()))?
    };
    let audit = Audit::start(config.log.audit.clone(), metrics.clone(), clock.clone())
        .map_err(|why| Failure::Start(format!("the audit file cannot be written: {why}")))?;
    let listener = Listener::open(&config.listen, context(&config), &state_dir, clock.clone())?;
    let inspector = Arc::new(deliver::inspector::Store::default());
    let engine = filter::Engine::with_kv(Some(state_dir.join("filters")), Arc::new(state.clone()));
    let keys = Keys::new(Some(state_dir.join("keys")), clock.clone(), metrics.clone());
    let opener = Arc::new(Opener::new(clock.clone(), metrics.clone(), engine, inspector.clone(), keys));
    let (policy, config) = blocking({
        let opener = opener.clone();
        move || (opener.open(&config, 1), config)
    })
    .await?;
    let gate = Arc::new(Gate {
        clock: clock.clone(),
        policy: ArcSwap::from_pointee(opener.keep(policy.map_err(Failure::Open)?)),
        state,
        budget: listener.budget(),
        audit,
        refused: Arc::default(),
        afterwork: deliver::Afterwork::default(),
        pairings: Arc::new(Pairings::new(&state_dir)),
        unrouted: metrics.unrouted(),
        metrics: metrics.clone(),
    });
    let config = adopt_ranges(&opener, config).await?;
    let ranges = tokio::spawn(ranges::run(opener.ranges.clone(), state_dir.clone(), clock.clone(), metrics.clone()));
    let control = listener.control();
    metrics.on_scrape({
        let budget = listener.budget();
        move |metrics| {
            metrics.connections.set(i64::try_from(budget.connections()).unwrap_or(i64::MAX));
            metrics.buffered_bytes.set(i64::try_from(budget.buffered()).unwrap_or(i64::MAX));
        }
    });
    let readiness = Arc::new(admin::Readiness::default());
    readiness.check("state", {
        let gate = gate.clone();
        move || gate.state.health().ready()
    });
    readiness.check("audit", {
        let gate = gate.clone();
        move || if gate.audit.accepting() { Ok(()) } else { Err("the audit file cannot be written".to_owned()) }
    });
    let mut signals = Signals::new().map_err(|why| Failure::Start(format!("signals cannot be taken: {why}")))?;
    let (ask, asked) = mpsc::channel::<Asked>(4);
    gate.pairings.reload_by(reload_by(ask.clone()));
    let mut made = None;
    let admin = match &config.admin {
        None => None,
        Some(settings) => {
            let token = admin::Token::load(settings, &state_dir).map_err(|why| Failure::Start(format!("the admin token: {why}")))?;
            let (policy, shown, explain) = (gate.clone(), gate.clone(), gate.clone());
            gate.refused.configure(settings.capture);
            let state = admin::AdminState {
                metrics: metrics.clone(),
                readiness: readiness.clone(),
                inspector,
                decisions: gate.audit.decisions(),
                refused: gate.refused.clone(),
                shown: Arc::new(move |kept| kept.detail(shown.policy.load().routes.iter().find(|route| kept.is_of(&route.name)).map(|route| &route.verify))),
                explain: Arc::new(move |kept| kept.explain(&explain.policy.load())),
                reload: reload_by(ask.clone()),
                policy: Arc::new(move || policy.policy.load().shown.clone()),
                pairings: gate.pairings.clone(),
                pairable: pairable(gate.clone()),
                token: token.secret.clone(),
                clock: clock.clone(),
            };
            made = token.made.clone().map(|file| (file, token.reveal()));
            let started = admin::Server::start(settings, state).await;
            Some(started.map_err(|why| Failure::Start(format!("the admin listener cannot use {}: {why}", settings.listen)))?)
        }
    };
    let running = listener.start(gate.clone())?;
    // Its warnings were said before anything was opened.
    events::policy_loaded(&metrics, path, 1, config.routes.len(), &[]);
    show_certificates(&metrics, &control, &clock);
    readiness.serving();
    banner(&running, &control, admin.as_ref(), &config, made);
    if let Some(file) = ready_file {
        let addresses: Vec<String> = running.addresses().iter().map(ToString::to_string).collect();
        let text = serde_json::json!({ "listen": addresses, "admin": admin.as_ref().map(|a| a.address().to_string()) }).to_string();
        // Under another name first: who waits for it never reads half of it.
        let half = file.with_extension("new");
        let written = std::fs::write(&half, text).and_then(|()| std::fs::rename(&half, file));
        written.map_err(|why| Failure::Start(format!("{} cannot be written: {why}", file.display())))?;
    }
    let drain_timeout = config.listen.drain_timeout;
    let mut gate_running = Running { path: path.to_owned(), config, gate: gate.clone(), opener, control, admin, readiness: readiness.clone(), state_dir };
    control_loop(&mut gate_running, watch, &mut signals, asked).await;
    ranges.abort();
    readiness.drain();
    events::draining(usize::try_from(gate.budget.requests()).unwrap_or(usize::MAX), drain_timeout);
    let left = running.drain(async {
        signals.told_to_stop().await;
        warn!("told to stop again: requests in flight are cut off");
    });
    let left = left.await;
    events::drained(usize::try_from(left).unwrap_or(usize::MAX));
    if let Some(admin) = gate_running.admin.take() {
        admin.stop().await;
    }
    let audit = gate.audit.clone();
    let _ = blocking(move || audit.close(Duration::from_secs(5))).await;
    if gate.state.flush().await.is_err() {
        return Err(Failure::Start("the state store failed at the end: what was done last may be delivered again".to_owned()));
    }
    Ok(())
}

/// Blocking work beside the runtime; its panic is an error of ours.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|why| Failure::Start(format!("a task of the gate failed: {why}")))
}

/// Hands the policy's address ranges to the task that keeps them current.
async fn adopt_ranges(opener: &Arc<Opener>, config: Config) -> Result<Config, Failure> {
    let opener = opener.clone();
    blocking(move || {
        opener.ranges.adopt(&config.ranges, &config.ip_ranges);
        config
    })
    .await
}

/// What the rest of the policy means for listening.
fn context(config: &Config) -> listen::Context<'_> {
    listen::Context { trusted: config.clients.trusted(), ask_client_certs: config.routes.iter().any(|route| route.client_cert.is_some()) }
}

fn reload_by(ask: mpsc::Sender<Asked>) -> admin::Reload {
    Arc::new(move || {
        let ask = ask.clone();
        Box::pin(async move {
            let stopping = || vec!["the gate is stopping".to_owned()];
            let (tell, told) = tokio::sync::oneshot::channel();
            ask.send(tell).await.map_err(|_| stopping())?;
            told.await.map_err(|_| stopping())?
        })
    })
}

/// What `hooklatch pair` can do with a route, by the policy in force.
fn pairable(gate: Arc<Gate>) -> admin::Pairable {
    Arc::new(move |name| {
        let policy = gate.policy.load();
        let route = policy.routes.iter().find(|route| &*route.name == name)?;
        Some(admin::PairRoute { takes_secret: route.verify.takes_secret(), shows_secret: route.verify.shows_secret() })
    })
}

struct Signals {
    stop: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { stop: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())?, hang_up: signal(SignalKind::hangup())? })
    }

    async fn told_to_stop(&mut self) {
        tokio::select! {
            _ = self.stop.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Reloads when asked, by signal, by a changed file or through the API, until told to stop.
async fn control_loop(running: &mut Running, mut watch: Watch, signals: &mut Signals, mut asked: mpsc::Receiver<Asked>) {
    let mut minute = tokio::time::interval(Duration::from_secs(60));
    loop {
        let tell = tokio::select! {
            _ = signals.stop.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hang_up.recv() => {
                running.gate.audit.reopen();
                None
            }
            () = watch.changed() => None,
            Some(tell) = asked.recv() => Some(tell),
            _ = minute.tick() => {
                running.opener.limiters.sweep();
                show_certificates(&running.gate.metrics, &running.control, &running.gate.clock);
                continue;
            }
        };
        let result = tokio::select! {
            result = reload(running, &mut watch) => result,
            () = signals.told_to_stop() => return,
        };
        let generation = running.gate.policy.load().generation;
        let answer = match result {
            Ok(warnings) => {
                events::policy_loaded(&running.gate.metrics, &running.path, generation, running.config.routes.len(), &warnings);
                show_certificates(&running.gate.metrics, &running.control, &running.gate.clock);
                running.readiness.note("policy", None);
                Ok(serde_json::json!({ "generation": generation }))
            }
            Err(Refused(problems)) => {
                events::policy_refused(&running.gate.metrics, &running.path, &problems);
                running.readiness.note("policy", Some("the policy file was refused; the one before it serves".to_owned()));
                Err(problems.iter().map(ToString::to_string).collect())
            }
        };
        if let Some(tell) = tell {
            let _ = tell.send(answer); // who asked may have gone away
        }
    }
}

/// Reads and opens the policy anew; either all of it is in force afterwards, or none. Hands out the policy's warnings.
async fn reload(running: &mut Running, watch: &mut Watch) -> Result<Vec<Problem>, Refused> {
    let path = running.path.clone();
    watch.look();
    let whole = |message: String| Refused(vec![Problem::error("", None, message)]);
    let read = blocking(move || config::load(&path)).await.map_err(|why| whole(why.to_string()))?.map_err(whole)?;
    // A refused policy's files are watched too, so that mending one of them is noticed.
    let files: BTreeSet<PathBuf> = read.files.union(&running.config.files).cloned().collect();
    watch.follow(&files);
    let placed = |problems: Vec<Problem>| -> Vec<Problem> { problems.into_iter().map(|problem| read.source.place(problem)).collect() };
    let refused = |problems: Vec<Problem>| Refused(placed(problems));
    let Some(config) = read.config else {
        return Err(refused(read.problems.into_iter().filter(|problem| problem.severity == crate::problem::Severity::Error).collect()));
    };
    let late = restart_needed(&running.config, &config);
    if !late.is_empty() {
        return Err(refused(late));
    }
    let generation = running.gate.policy.load().generation + 1;
    let opener = running.opener.clone();
    let (config, opened) = blocking(move || {
        let opened = opener.open(&config, generation);
        (config, opened)
    })
    .await
    .map_err(|why| whole(why.to_string()))?;
    let opened = opened.map_err(&refused)?;
    let token = match &config.admin {
        Some(settings) => Some(admin::Token::load(settings, &running.state_dir).map_err(|why| whole(format!("the admin token: {why}")))?),
        None => None,
    };
    // The last step that may fail; what follows cannot.
    running.control.reload(&config.listen, context(&config)).map_err(|problem| refused(vec![problem]))?;
    let config = adopt_ranges(&running.opener, config).await.map_err(|why| whole(why.to_string()))?;
    running.gate.policy.store(Arc::new(running.opener.keep(opened)));
    if let (Some(admin), Some(settings), Some(token)) = (&running.admin, &config.admin, token) {
        if let Some(file) = &token.made {
            warn!(file = %file.display(), "made an admin token: the policy names none any more");
        }
        admin.configure(settings, token.secret);
        running.gate.refused.configure(settings.capture);
    }
    running.gate.audit.configure(config.log.audit.clone());
    observe::setup::start(&config.log);
    watch.follow(&config.files);
    running.config = config;
    Ok(placed(read.problems)) // without an error there are only warnings
}

/// What only a restart can change is refused as such, never half taken over.
fn restart_needed(old: &Config, new: &Config) -> Vec<Problem> {
    let admin = |config: &Config| config.admin.as_ref().map(|admin| (admin.listen, admin.tls.is_some()));
    let changed = [
        ("server.listen", old.listen.listen != new.listen.listen),
        ("server.workers", old.listen.workers != new.listen.workers),
        ("server.drain_timeout", old.listen.drain_timeout != new.listen.drain_timeout),
        ("server.tls", old.listen.tls.is_some() != new.listen.tls.is_some()),
        ("admin", admin(old) != admin(new)),
        ("state", old.state != new.state),
        ("log.format", old.log.format != new.log.format),
    ];
    let problem = |key: &str| Problem::error(key, None, format!("a change of `{key}` needs a restart")).help("put the old value back, or restart the gate");
    changed.iter().filter(|(_, changed)| *changed).map(|(key, _)| problem(key)).collect()
}

fn show_certificates(metrics: &Metrics, control: &listen::Control, clock: &Clock) {
    events::certificates_loaded(metrics, &control.expiries(), clock.now().wall_ms);
}

/// Says where the gate listens, where its page is, and one line to try: for people on a terminal, one log line for machines.
fn banner(
    running: &listen::Running,
    control: &listen::Control,
    admin: Option<&admin::Server>,
    config: &Config,
    made: Option<(PathBuf, zeroize::Zeroizing<String>)>,
) {
    let scheme = if config.listen.tls.is_some() { "https" } else { "http" };
    let ca = control.ca_file();
    for address in running.addresses() {
        info!(%address, admin = admin.map(|admin| tracing::field::display(admin.address())), ca = ca.as_ref().map(|ca| tracing::field::display(ca.display())), "listening");
    }
    if !config.log.for_people() {
        if let Some((file, _)) = &made {
            warn!(file = %file.display(), "made an admin token");
        }
        return;
    }
    let port = running.addresses().first().map_or(0, std::net::SocketAddr::port);
    anstream::eprintln!("\n  hooklatch {} serves {} route(s)", env!("CARGO_PKG_VERSION"), config.routes.len());
    for address in running.addresses() {
        anstream::eprintln!("  webhooks   {scheme}://{address}");
    }
    if let Some(ca) = &ca {
        anstream::eprintln!("  CA         {} (self-signed: clients are told to trust this file)", ca.display());
    }
    if let Some(admin) = admin {
        // With the token behind the `#`, which a browser never sends, the page logs in by itself.
        let token = made.as_ref().map(|(_, token)| format!("#token={}", token.as_str())).unwrap_or_default();
        anstream::eprintln!("  page       {}{token}", admin.url());
    }
    if let Some((file, token)) = &made {
        anstream::eprintln!("  token      {} (made just now, kept in {}; it is not shown again)", token.as_str(), file.display());
    }
    if let Some(route) = config.routes.iter().find(|route| route.verify.provider().is_some()) {
        let provider = route.verify.provider().map_or("", |name| name);
        let cacert = ca.as_ref().map(|ca| format!(" --cacert {}", ca.display())).unwrap_or_default();
        let secret = route.secret_source.as_deref().unwrap_or("env:SECRET");
        anstream::eprintln!("  try        hooklatch send {provider} --url {scheme}://localhost:{port}{}{cacert} --secret {secret}", route.path);
    }
    anstream::eprintln!();
}
