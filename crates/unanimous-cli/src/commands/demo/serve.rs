//! `unanimous demo`: serves the order desk until it is told to stop.
//!
//! Must not know what the handlers do.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::MatchedPath;
use axum::http::Method;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use unanimous::http::{
    IdempotencyLayer, OutcomeService, ReadinessService, RetryLayer, TransactionLayer, default_commit_veto,
};

use super::desk::Desk;
use super::spawned::Spawned;
use super::stores::Chosen;
use super::{answer, body, handlers};
use crate::failure::Failure;
use crate::output::{say, warn};

/// How long connections may go on after a signal, and how long commits may after that.
const DRAIN: Duration = Duration::from_secs(10);

/// How often an order that meets another one is tried.
const ATTEMPTS: u32 = 20;

pub(crate) fn run(listen: &str, data: &Path, chosen: &Chosen, conflict: bool) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new("can't start the runtime").because(&error))?;
    runtime.block_on(serve(listen, data, chosen, conflict))
}

async fn serve(listen: &str, data: &Path, chosen: &Chosen, conflict: bool) -> Result<ExitCode, Failure> {
    let signals = signals().map_err(|error| Failure::new("can't listen for signals").because(&error))?;
    // First of all, so that nothing has been touched when the port is taken. Clients that come early wait until it is served.
    let listener = TcpListener::bind(listen).await.map_err(|error| not_bound(listen, &error))?;
    let address = listener.local_addr().map_err(|error| not_bound(listen, &error))?;
    let check = check_line(data, chosen);
    // Nothing else is to be done in the meantime, so that it may block.
    let (stores, spawned) = chosen.open(data)?;
    let desk = Desk::open(data, &stores, conflict, &check).await?;
    introduce(address, data, desk.described(), &check);
    desk.in_doubt().iter().for_each(warn);

    let (stop, stopping) = watch::channel(false);
    tokio::spawn(wait_for_signals(signals, stop));
    let app = router(desk.clone());
    let graceful = axum::serve(listener, app).with_graceful_shutdown(stopped(stopping.clone()));
    tokio::select! {
        ended = graceful => ended.map_err(|error| Failure::new("the server failed").because(&error))?,
        () = async { stopped(stopping).await; tokio::time::sleep(DRAIN).await } => {
            warn("some connections were still open, and are closed");
        }
    }
    let closed = desk.close(DRAIN).await;
    spawned.map_or(Ok(()), Spawned::stop)?;
    match closed {
        Ok(()) => {
            say("stopped; everything that was committing has ended");
            Ok(ExitCode::SUCCESS)
        }
        Err(undrained) => Err(Failure::new(format!("stopped; {undrained}"))),
    }
}

/// What is served; the transaction layer is around everything that joins stores in the request's name.
pub(crate) fn router(desk: Desk) -> Router {
    let layer = TransactionLayer::new(desk.manager.clone())
        .commit_veto(default_commit_veto)
        .route(|head| head.extensions.get::<MatchedPath>().map(|path| path.as_str().to_owned()))
        .on_commit_failure(answer::commit_failed);
    let retry = RetryLayer::new().attempts(ATTEMPTS).when(|head| head.method == Method::POST);
    let in_transaction = Router::new()
        .route("/orders", get(handlers::orders).post(handlers::place))
        .route("/receipts/{id}", get(handlers::receipt))
        .method_not_allowed_fallback(handlers::not_this_way)
        // Each is around what is above it.
        .layer(IdempotencyLayer::new(desk.keys()))
        .layer(layer)
        .layer(retry)
        .layer(from_fn(body::whole))
        .layer(from_fn(answer::caught))
        .layer(from_fn_with_state(desk.clone(), answer::for_browsers));
    Router::new()
        .route("/", get(handlers::look))
        .route_service("/transactions/{id}", OutcomeService::new(desk.manager.clone()))
        .route_service("/ready", ReadinessService::new(desk.manager.clone()))
        .method_not_allowed_fallback(handlers::not_this_way)
        .merge(in_transaction)
        .fallback(handlers::nothing_here)
        .with_state(desk)
}

fn not_bound(listen: &str, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::AddrInUse => Failure::new(format!("the address {listen} is taken by another program"))
            .hint("stop that one (it may be another demo), or choose another port: --listen 127.0.0.1:8081"),
        io::ErrorKind::PermissionDenied => Failure::new(format!("not allowed to listen on {listen}"))
            .because(error)
            .hint("choose a port above 1023: --listen 127.0.0.1:8080"),
        _ => Failure::new(format!("can't listen on {listen:?}"))
            .because(error)
            .hint("give an address of this machine and a port: --listen 127.0.0.1:8080"),
    }
}

/// What it is, where it is, and lines that can be typed as they are.
fn introduce(address: SocketAddr, data: &Path, stores: &str, check: &str) {
    let data = shell_word(&data.display().to_string());
    let pid = std::process::id();
    say(format!(
        "An order desk. Each order is one transaction over {stores}; its data is in {data}
listening on http://{address}

Try:
  curl http://{address}/orders -d customer=Ada -d item=tea -d quantity=3
  curl http://{address}/orders -H 'content-type: application/json' -d '{{\"customer\": \"Ada\", \"item\": \"tea\", \"quantity\": 3}}'
  curl 'http://{address}/orders?limit=10'
  curl http://{address}/receipts/1
or the page http://{address}/ in a browser. Send an order twice with the same key, and it is stored once:
  curl http://{address}/orders -H 'Idempotency-Key: \"7a1f\"' -d customer=Ada -d item=tea -d quantity=3
How a transaction ended, by its id, which an answer has in its header unanimous-transaction: http://{address}/transactions/ID
Let an order fail after it was written to all stores, and nothing of it is left:
  curl http://{address}/orders -d customer=Ada -d item=tea -d quantity=3 -d fail=vote
  (or fail=error, fail=veto, fail=panic, fail=doom)
Kill it, start it again, and compare the stores; while it runs, too:
  kill -9 {pid}
  {check}
Ctrl-C stops it."
    ));
}

/// The command line that compares the stores.
fn check_line(data: &Path, chosen: &Chosen) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "unanimous".into());
    let words = ["demo".to_owned(), "check".into(), "--data".into(), data.display().to_string()];
    let words = std::iter::once(program).chain(words).chain(chosen.words());
    words.map(|word| shell_word(&word)).collect::<Vec<_>>().join(" ")
}

/// A word as a POSIX shell takes it.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn signals() -> io::Result<[Signal; 2]> {
    Ok([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?])
}

/// The first signal stops the server in order, within two [`DRAIN`]s. Others change nothing: some programs send each twice, and who
/// can't wait has kill -9, which is as safe.
async fn wait_for_signals([mut interrupt, mut terminate]: [Signal; 2], stop: watch::Sender<bool>) {
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if !stop.send_replace(true) {
            say("stopping: what is committing is finished first");
        }
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // The sender is kept by the task that waits for signals, until the program ends.
    let _ = stopping.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn words_for_a_shell() {
        assert_eq!(shell_word("target/release/unanimous"), "target/release/unanimous");
        assert_eq!(shell_word("my data"), "'my data'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
