//! A listener of the demo's channel, on a connection of its own that is made again whenever it is cut.
//!
//! Must not know what is said there.

use std::future::poll_fn;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio_postgres::{AsyncMessage, Config, NoTls};

use super::faults::LISTENER;
use crate::postgres::Servers;

const CHANNEL: &str = "orders";
const PAUSE: Duration = Duration::from_millis(10);

/// One connection's time.
#[derive(Clone, Debug, Default)]
pub(super) struct Session {
    /// What was committed before it surely listened: the last number in the deliveries' table. All later ones it must hear of, in their
    /// order, until it is cut.
    pub(super) after: i64,
    pub(super) heard: Vec<String>,
}

/// What all sessions have heard.
#[derive(Debug)]
pub(super) struct Listener(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    sessions: Mutex<Sessions>,
    changed: Condvar,
    /// So that what is said is said once.
    said: AtomicU64,
}

#[derive(Debug, Default)]
struct Sessions {
    all: Vec<Session>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// Listens in a thread of its own, until this is dropped.
    pub(super) fn start(url: String) -> Self {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime needs nothing but memory and a few descriptors");
            while !theirs.lock().stop {
                // How a session ended is not of interest: the server was stopped, or is starting.
                let _ = runtime.block_on(listen(&url, &theirs));
                thread::sleep(PAUSE);
            }
        });
        Self(shared)
    }

    /// All sessions so far, the last one may be alive.
    pub(super) fn sessions(&self) -> Vec<Session> {
        self.0.lock().all.clone()
    }

    /// Says something on the channel until the last session has heard it: what was said before it, that session has heard too. False:
    /// it did not within the limit.
    pub(super) fn catch_up(&self, servers: &Servers, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            let word = format!("caught up? {}", self.0.said.fetch_add(1, Ordering::Relaxed));
            let said = servers.psql(0, &format!("select pg_notify('{CHANNEL}', '{word}')"));
            let until = Instant::now() + Duration::from_secs(1);
            let mut sessions = self.0.lock();
            while said.is_ok() {
                if sessions.all.last().is_some_and(|session| session.heard.contains(&word)) {
                    return true;
                }
                let Some(left) = until.checked_duration_since(Instant::now()) else { break };
                sessions = self.0.changed.wait_timeout(sessions, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            drop(sessions);
            if start.elapsed() > limit {
                return false;
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.lock().stop = true;
    }
}

async fn listen(url: &str, shared: &Arc<Shared>) -> Result<(), tokio_postgres::Error> {
    let mut config = Config::from_str(url)?;
    config.application_name(LISTENER).connect_timeout(Duration::from_secs(5));
    let (client, mut connection) = config.connect(NoTls).await?;
    // Before `LISTEN`, so that nothing is heard without a session.
    let number = {
        let mut sessions = shared.lock();
        sessions.all.push(Session { after: i64::MAX, heard: Vec::new() });
        sessions.all.len() - 1
    };
    let theirs = shared.clone();
    let hearing = tokio::spawn(async move {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message? {
                theirs.lock().all[number].heard.push(notification.payload().to_owned());
                theirs.changed.notify_all();
            }
        }
        Ok::<_, tokio_postgres::Error>(())
    });
    client.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
    let last = client.query_one("SELECT coalesce(max(n), 0) FROM crash.delivered", &[]).await?;
    shared.lock().all[number].after = last.get(0);
    while !hearing.is_finished() && !shared.lock().stop {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
