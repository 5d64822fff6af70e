//! The faults that are done to demo and servers.
//!
//! Must not know what must hold after them.

use std::io;
use std::thread;
use std::time::Duration;

use crate::crash::other;
use crate::demo::Demo;
use crate::postgres::Servers;
use crate::rng::Rng;

/// What a listener calls itself, so that the demo's sessions can be told from it.
pub(super) const LISTENER: &str = "crash listener";

/// On the servers: of the orders, and of the invoices.
pub(super) const DATABASES: [&str; 2] = ["orders", "invoices"];

/// What is done to demo and servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    KillDemo,
    StopServer(usize),
    StopBoth,
    TerminateSome,
    TerminateAll,
    /// The demo is started again while this server is down.
    StopServerAndKillDemo(usize),
}

impl Fault {
    pub(super) fn choose(rng: &mut Rng) -> Self {
        let server = usize::from(rng.chance(1, 2));
        match rng.between(1, 100) {
            1..=25 => Self::KillDemo,
            26..=50 => Self::StopServer(server),
            51..=60 => Self::StopBoth,
            61..=75 => Self::TerminateSome,
            76..=90 => Self::TerminateAll,
            _ => Self::StopServerAndKillDemo(server),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KillDemo => "kill -9 of the demo",
            Self::StopServer(0) => "immediate stop of the orders",
            Self::StopServer(_) => "immediate stop of the invoices",
            Self::StopBoth => "immediate stop of both",
            Self::TerminateSome => "some sessions terminated",
            Self::TerminateAll => "all sessions terminated",
            Self::StopServerAndKillDemo(_) => "kill -9 of the demo while a server is down",
        }
    }

    pub(super) fn kills_the_demo(self) -> bool {
        matches!(self, Self::KillDemo | Self::StopServerAndKillDemo(_))
    }

    pub(super) fn leaves_a_server_down(self) -> bool {
        matches!(self, Self::StopServerAndKillDemo(_))
    }

    /// Does it. A server that is stopped is started again, unless the demo is to be started without it.
    pub(super) fn strike(self, servers: &mut Servers, demo: &mut Demo, rng: &mut Rng) -> io::Result<()> {
        let down = Duration::from_millis(rng.between(0, 400));
        match self {
            Self::KillDemo => demo.kill(),
            Self::StopServer(server) => {
                servers.stop_immediate(server).map_err(other)?;
                thread::sleep(down);
                servers.restart().map_err(other)
            }
            Self::StopBoth => {
                let order = if rng.chance(1, 2) { [0, 1] } else { [1, 0] };
                for server in order {
                    servers.stop_immediate(server).map_err(other)?;
                }
                thread::sleep(down);
                servers.restart().map_err(other)
            }
            Self::TerminateSome => {
                // Several times, since one of few sessions is rarely in the middle of something.
                for _ in 0..rng.between(1, 6) {
                    servers.terminate(usize::from(rng.chance(1, 2)), "random() < 0.3").map_err(other)?;
                    thread::sleep(down / 20);
                }
                Ok(())
            }
            Self::TerminateAll => {
                servers.terminate(0, "true").map_err(other)?;
                servers.terminate(1, "true").map_err(other)
            }
            Self::StopServerAndKillDemo(server) => {
                servers.stop_immediate(server).map_err(other)?;
                thread::sleep(down / 4);
                demo.kill()
            }
        }
    }
}
