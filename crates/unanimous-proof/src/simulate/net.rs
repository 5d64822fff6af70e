//! Messages between processes and stores: each takes its time, and is lost, late or executed twice by the generator's choice.
//!
//! What is sent over one connection arrives in its order. A message belongs to the run of the server that it was sent to.
//!
//! Must not know what the requests mean.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use super::chaos;
use super::coverage::Path;
use super::executor::{Life, lock};
use super::process::Death;
use super::server::{Request, Response, Server};
use super::world::World;

/// A connection.
#[derive(Default)]
pub(super) struct Line {
    /// When the last message arrives that was sent over it.
    last: Mutex<Duration>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The server could not be connected to: it was certainly not asked.
    NotSent,
    /// Nobody knows.
    Lost,
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NoAnswer::NotSent => "the store can't be connected to",
            NoAnswer::Lost => "the connection was lost",
        })
    }
}

impl std::error::Error for NoAnswer {}

/// A process's way to a store.
#[derive(Clone)]
pub(super) struct Net {
    pub(super) world: Arc<World>,
    pub(super) life: Arc<Life>,
    pub(super) server: Arc<Server>,
}

/// What becomes of a message.
struct Fate {
    lost: bool,
    answer_lost: bool,
    twice: bool,
    /// The client gives up after this, and the message arrives all the same.
    given_up: Option<Duration>,
}

impl Net {
    /// Asks over a connection of its own.
    pub(super) async fn ask(&self, request: Request, limit: Duration) -> Result<Response, NoAnswer> {
        if self.server.boot().is_none() && !self.life.is_dead() {
            self.world.sleep(self.world.some_time(self.world.plan.delay)).await;
            return Err(NoAnswer::NotSent);
        }
        self.send(&Arc::default(), request, limit).await
    }

    /// Asks over this connection.
    pub(super) async fn send(&self, line: &Arc<Line>, request: Request, limit: Duration) -> Result<Response, NoAnswer> {
        self.die_sometimes().await;
        let fate = self.fate();
        let answer = self.dispatch(line, request.clone(), &fate);
        self.die_sometimes().await;
        let given_up = async {
            match fate.given_up {
                Some(after) => self.world.sleep(after).await,
                None => pending().await,
            }
        };
        let answered = tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| NoAnswer::Lost),
            () = given_up => Err(NoAnswer::Lost),
            () = self.world.sleep(limit) => Err(NoAnswer::Lost),
        };
        if answered.is_err() {
            let (process, number) = (self.life.process, self.life.number);
            self.world.note(format_args!("{process}.{number} no answer from {}: {request:?}", self.server.name));
        }
        self.die_sometimes().await;
        answered
    }

    /// Sends without waiting for an answer; it arrives unless the server is down.
    pub(super) fn tell(&self, line: &Arc<Line>, request: Request) {
        if !self.life.is_dead() {
            let fate = Fate { lost: false, answer_lost: false, twice: false, given_up: None };
            drop(self.dispatch(line, request, &fate));
        }
    }

    async fn die_sometimes(&self) {
        if self.life.is_dead() {
            return pending().await;
        }
        if self.world.fault(self.world.plan.die) {
            self.world.saw(Path::DiedAtMessage);
            Death::at_once(&self.world, &self.life);
            pending().await
        }
    }

    fn fate(&self) -> Fate {
        let (world, net) = (&self.world, &self.world.plan.net);
        let mut fate = Fate { lost: false, answer_lost: false, twice: false, given_up: None };
        if world.fault(net.lost_question) {
            world.saw(Path::LostQuestion);
            fate.lost = true;
        } else if world.fault(net.lost_answer) {
            fate.answer_lost = true;
        } else if world.fault(net.late) {
            fate.given_up = Some(world.some_time(world.plan.delay * 2));
        }
        if world.fault(net.twice) {
            fate.twice = true;
        }
        fate
    }

    fn dispatch(&self, line: &Arc<Line>, request: Request, fate: &Fate) -> oneshot::Receiver<Response> {
        let (say, answer) = oneshot::channel();
        let world = self.world.clone();
        let delay = world.some_time(world.plan.delay);
        let lateness = match fate.given_up {
            Some(after) => after + Duration::from_millis(world.between(1, world.plan.net.lateness)),
            None => Duration::ZERO,
        };
        let arrival = {
            let mut last = lock(&line.last);
            *last = (world.now() + delay + lateness).max(*last + Duration::from_micros(1));
            *last
        };
        // A client that nobody answers sees its connection reset, or waits for its limit.
        let hangs = fate.lost && world.chance(500) || fate.answer_lost && world.chance(500);
        let (lost, answer_lost, twice, late) = (fate.lost, fate.answer_lost, fate.twice, fate.given_up.is_some());
        let (life, server, line) = (self.life.clone(), self.server.clone(), line.clone());
        let boot = server.boot();
        let executor = world.executor.clone();
        executor.spawn(None, async move {
            let wait = arrival.saturating_sub(world.now());
            world.sleep(wait).await;
            if lost {
                if hangs {
                    world.sleep(LONG).await;
                }
                return;
            }
            if boot.is_none() || server.boot() != boot {
                return;
            }
            let response = server.execute(&world, &life, &line, &request);
            if let Some(place) = server.place_of(&request, &response) {
                let most = if world.has_faults() { *world.pick(&[1_000, 10_000, 1_000_000, 4_000_000]) } else { 1_000 };
                world.sleep(world.some_time(most)).await;
                if world.plan.store_crashes > 0 && world.fault(30) {
                    chaos::crash_store(&world, server.index, false);
                }
                if server.boot() != boot {
                    return;
                }
                server.confirm(place);
            }
            if late {
                world.saw(Path::Late);
            }
            if twice {
                let (world, server) = (world.clone(), server.clone());
                let again = world.some_time(world.plan.delay * 20);
                world.executor.clone().spawn(None, async move {
                    world.sleep(again).await;
                    if server.boot() == boot {
                        server.execute(&world, &life, &line, &request);
                        world.saw(Path::Twice);
                    }
                });
            }
            if answer_lost {
                world.saw(Path::LostAnswer);
                if hangs {
                    world.sleep(LONG).await;
                }
                return;
            }
            world.sleep(world.some_time(world.plan.delay)).await;
            if server.boot() == boot {
                let _ = say.send(response);
            }
        });
        answer
    }

    /// The connection breaks: what was sent over it arrives, and then the server notices that nobody is there.
    pub(super) fn closes(world: &Arc<World>, life: &Arc<Life>, server: &Arc<Server>, after: Duration) {
        for (session, line) in server.sessions_of(life) {
            let arrival = {
                let mut last = lock(&line.last);
                *last = (world.now() + after).max(*last + Duration::from_micros(1));
                *last
            };
            let boot = server.boot();
            let (world, life, server) = (world.clone(), life.clone(), server.clone());
            let executor = world.executor.clone();
            executor.spawn(None, async move {
                world.sleep(arrival.saturating_sub(world.now())).await;
                if server.boot() == boot {
                    server.execute(&world, &life, &line, &Request::Close { session });
                }
            });
        }
    }
}

/// Longer than anybody waits.
const LONG: Duration = Duration::from_secs(60);
