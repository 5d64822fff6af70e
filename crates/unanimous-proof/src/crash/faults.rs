//! The faults that are done to the program and to the servers under it.
//!
//! Must not know what must hold after them.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use unanimous_testing::postgres::Servers;
use unanimous_testing::process::Program;
use unanimous_testing::rng::Rng;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    KillProgram,
    /// The program is started again while this server is down.
    KillProgramWithoutServer(usize),
    StopServer(usize),
    StopBoth,
    KillServer(usize),
    TerminateSome,
    TerminateAll,
    HaltProgram,
    HaltServer(usize),
}

impl Fault {
    pub(super) fn choose(rng: &mut Rng) -> Self {
        let server = usize::from(rng.chance(1, 2));
        match rng.between(1, 100) {
            1..=28 => Self::KillProgram,
            29..=36 => Self::KillProgramWithoutServer(server),
            37..=50 => Self::StopServer(server),
            51..=57 => Self::StopBoth,
            58..=65 => Self::KillServer(server),
            66..=78 => Self::TerminateSome,
            79..=86 => Self::TerminateAll,
            87..=92 => Self::HaltProgram,
            _ => Self::HaltServer(server),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KillProgram => "kill -9 of the program",
            Self::KillProgramWithoutServer(_) => "kill -9 of the program while a server is down",
            Self::StopServer(0) => "immediate stop of the left server",
            Self::StopServer(_) => "immediate stop of the right server",
            Self::StopBoth => "immediate stop of both servers",
            Self::KillServer(_) => "kill -9 of a server",
            Self::TerminateSome => "some sessions terminated",
            Self::TerminateAll => "all sessions terminated",
            Self::HaltProgram => "the program halted for a while",
            Self::HaltServer(_) => "a server halted for a while",
        }
    }

    pub(super) fn kills_the_program(self) -> bool {
        matches!(self, Self::KillProgram | Self::KillProgramWithoutServer(_))
    }

    pub(super) fn kills_of_servers(self) -> u64 {
        match self {
            Self::StopBoth => 2,
            Self::StopServer(_) | Self::KillServer(_) | Self::KillProgramWithoutServer(_) => 1,
            _ => 0,
        }
    }

    /// Does it. A server that is stopped is started again, unless the program is to be started without it. What is halted goes on after
    /// `halt` at the latest.
    pub(super) fn strike(
        self,
        servers: &mut Servers,
        program: &mut Program,
        halt: Duration,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let down = Duration::from_millis(rng.between(0, 400));
        let halted = Duration::from_millis(rng.between(50, halt.as_millis() as u64));
        let kill = |program: &mut Program| program.kill().map(drop).map_err(|error| error.to_string());
        match self {
            Self::KillProgram => kill(program)?,
            Self::KillProgramWithoutServer(server) => {
                servers.stop_immediate(server).map_err(text)?;
                thread::sleep(down / 4);
                kill(program)?;
            }
            Self::StopServer(server) => {
                servers.stop_immediate(server).map_err(text)?;
                thread::sleep(down);
                servers.restart().map_err(text)?;
            }
            Self::StopBoth => {
                let first = usize::from(rng.chance(1, 2));
                servers.stop_immediate(first).map_err(text)?;
                servers.stop_immediate(1 - first).map_err(text)?;
                thread::sleep(down);
                servers.restart().map_err(text)?;
            }
            Self::KillServer(server) => {
                servers.kill(server).map_err(text)?;
                thread::sleep(down);
                servers.restart().map_err(text)?;
            }
            Self::TerminateSome => {
                // Several times, since one of few sessions is rarely in the middle of something.
                for _ in 0..rng.between(1, 6) {
                    servers.terminate(usize::from(rng.chance(1, 2)), "random() < 0.3").map_err(text)?;
                    thread::sleep(down / 20);
                }
            }
            Self::TerminateAll => {
                servers.terminate(0, "true").map_err(text)?;
                servers.terminate(1, "true").map_err(text)?;
            }
            Self::HaltProgram => {
                program.signal(Signal::STOP).map_err(|error| error.to_string())?;
                // What it waited for has gone on without it.
                if rng.chance(1, 3) {
                    servers.terminate(usize::from(rng.chance(1, 2)), "true").map_err(text)?;
                }
                thread::sleep(halted);
                program.signal(Signal::CONT).map_err(|error| error.to_string())?;
            }
            Self::HaltServer(server) => {
                servers.halt(server);
                thread::sleep(halted);
                servers.go_on(server);
            }
        }
        Ok(())
    }
}

pub(super) fn text(error: unanimous_testing::postgres::Error) -> String {
    error.to_string()
}
