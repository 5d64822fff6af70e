//! Clients in a closed loop, and sides that take turns with them.
//!
//! Must not know what a client does.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::Error;
use crate::rounds::{Rounds, median};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Something that clients do again and again.
#[derive(Clone)]
pub(crate) struct Side {
    name: String,
    /// Where it runs.
    on: Handle,
    /// One time, by this client: how long the client waited for its answer.
    once: Arc<dyn Fn(usize) -> BoxFuture<Result<Duration, Error>> + Send + Sync>,
}

/// How long, how often and by how many at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) clients: usize,
    pub(crate) rounds: usize,
    pub(crate) length: Duration,
}

/// What a side's rounds said.
pub(crate) struct Measured {
    pub(crate) per_second: Rounds,
    /// The half of the answers that came first came within it.
    pub(crate) p50: Rounds,
}

impl Side {
    /// A side on the current runtime, whose client waits until all is done.
    pub(crate) fn new<F, Fut>(name: &str, once: F) -> Self
    where
        F: Fn(usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Error>> + Send + 'static,
    {
        Self::until_answered(name, move |client| {
            let begun = Instant::now();
            let work = once(client);
            async move { work.await.map(|()| begun.elapsed()) }
        })
    }

    /// The same, where the client has its answer before all is done, and says itself how long that took.
    pub(crate) fn until_answered<F, Fut>(name: &str, once: F) -> Self
    where
        F: Fn(usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Duration, Error>> + Send + 'static,
    {
        Self { name: name.to_owned(), on: Handle::current(), once: Arc::new(move |client| Box::pin(once(client))) }
    }

    /// One round: how many were done in a second, and the median wait in microseconds.
    async fn round(&self, plan: Plan) -> Result<(f64, f64), Error> {
        let begun = Instant::now();
        let mut clients = JoinSet::new();
        for client in 0..plan.clients {
            let once = self.once.clone();
            let loops = async move {
                let mut waits = Vec::new();
                while begun.elapsed() < plan.length {
                    waits.push(once(client).await?.as_secs_f64() * 1e6);
                }
                Ok::<_, Error>(waits)
            };
            clients.spawn_on(loops, &self.on);
        }
        let mut waits = Vec::new();
        while let Some(client) = clients.join_next().await {
            waits.extend(client?.map_err(|error| format!("{}: {error}", self.name))?);
        }
        Ok((waits.len() as f64 / begun.elapsed().as_secs_f64(), median(&waits)))
    }
}

/// Each side once in each round, the first of a round in turn, after one round that warms up.
pub(crate) async fn turns(plan: Plan, sides: &[Side]) -> Result<Vec<Measured>, Error> {
    let rounds = |side: &Side| Measured {
        per_second: Rounds::new(&side.name, "per second"),
        p50: Rounds::new(&side.name, "µs"),
    };
    let mut measured: Vec<_> = sides.iter().map(rounds).collect();
    for round in 0..=plan.rounds {
        for turn in 0..sides.len() {
            let number = (round + turn) % sides.len();
            let (per_second, p50) = sides[number].round(plan).await?;
            if round > 0 {
                measured[number].per_second.push(per_second);
                measured[number].p50.push(p50);
            }
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_go_on_until_the_round_is_over() {
        let side = Side::new("sleeps", |_| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(())
        });
        let plan = Plan { clients: 4, rounds: 1, length: Duration::from_millis(50) };
        let measured = turns(plan, &[side]).await.unwrap();
        let (per_second, p50) = (measured[0].per_second.row().value, measured[0].p50.row().value);
        assert!(p50 >= 5000.0, "{p50}");
        // Four at a time, as many as their waits allow.
        assert!(per_second > 4.0 && per_second <= 4.0 / 0.005, "{per_second}");
    }
}
