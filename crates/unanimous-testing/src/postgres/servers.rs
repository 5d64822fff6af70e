//! Several servers, a database on each, and what can be done to them.
//!
//! Must not know who works with them.

use rustix::process::{Pid, Signal, kill_process};

use super::{Cluster, Error};

/// Servers, each with the database that is worked with.
#[derive(Debug)]
pub struct Servers {
    all: Vec<(Cluster, String)>,
    spared: String,
}

impl Servers {
    /// These servers with a database each, which is made.
    ///
    /// # Errors
    ///
    /// When a server does not run, or has a database of that name.
    pub fn new(clusters: impl IntoIterator<Item = Cluster>, databases: &[&str]) -> Result<Self, Error> {
        let all = clusters.into_iter().zip(databases).map(|(cluster, database)| {
            cluster.create_database(database)?;
            Ok((cluster, (*database).to_owned()))
        });
        Ok(Self { all: all.collect::<Result<_, Error>>()?, spared: String::new() })
    }

    /// Sessions that call themselves so are not [terminated](Self::terminate).
    #[must_use]
    pub fn sparing(self, application_name: &str) -> Self {
        Self { spared: application_name.to_owned(), ..self }
    }

    /// Makes another database on a server, which is worked with from now on.
    ///
    /// # Errors
    ///
    /// When the server does not run, or has a database of that name.
    pub fn turn_to(&mut self, server: usize, database: &str) -> Result<(), Error> {
        let (cluster, current) = &mut self.all[server];
        cluster.create_database(database)?;
        *current = database.to_owned();
        Ok(())
    }

    /// A connection string for a server's database, as the superuser `postgres`.
    pub fn url(&self, server: usize) -> String {
        let (cluster, database) = &self.all[server];
        cluster.url(database)
    }

    /// As [`Cluster::psql`], in a server's database.
    ///
    /// # Errors
    ///
    /// psql's, with the SQLSTATE.
    pub fn psql(&self, server: usize, sql: &str) -> Result<String, Error> {
        let (cluster, database) = &self.all[server];
        cluster.psql(database, sql)
    }

    /// What is prepared on all servers, whoever's and in whatever database.
    ///
    /// # Errors
    ///
    /// When one does not run.
    pub fn prepared(&self) -> Result<Vec<String>, Error> {
        let mut all = Vec::new();
        for (cluster, _) in &self.all {
            let gids = cluster.psql("postgres", "select gid from pg_prepared_xacts")?;
            all.extend(gids.lines().map(str::to_owned));
        }
        Ok(all)
    }

    /// Starts those that don't run.
    ///
    /// # Errors
    ///
    /// When one does not start.
    pub fn restart(&mut self) -> Result<(), Error> {
        for (cluster, _) in self.all.iter_mut().filter(|(cluster, _)| cluster.pid().is_none()) {
            cluster.restart()?;
        }
        Ok(())
    }

    /// As [`Cluster::stop_immediate`].
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn stop_immediate(&mut self, server: usize) -> Result<(), Error> {
        self.all[server].0.stop_immediate()
    }

    /// As [`Cluster::kill`].
    ///
    /// # Errors
    ///
    /// When it can't be killed.
    pub fn kill(&mut self, server: usize) -> Result<(), Error> {
        self.all[server].0.kill()
    }

    /// Ends sessions in a server's database: those of `pg_stat_activity` for which the condition `which` is true.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn terminate(&self, server: usize, which: &str) -> Result<(), Error> {
        let sql = format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() \
             and backend_type = 'client backend' and pid <> pg_backend_pid() and application_name <> '{}' and {which}",
            self.spared
        );
        self.psql(server, &sql).map(drop)
    }

    /// Halts a server with all its processes: it answers nobody, and keeps its connections, until it is [let go on](Self::go_on).
    pub fn halt(&mut self, server: usize) {
        // The first is the postmaster's: halted, it makes no more of them.
        if self.all[server].0.signal(Signal::STOP).is_ok() {
            self.signal_all(server, Signal::STOP);
        }
    }

    /// Lets a halted server go on.
    pub fn go_on(&mut self, server: usize) {
        self.signal_all(server, Signal::CONT);
    }

    fn signal_all(&self, server: usize, signal: Signal) {
        let processes = self.all[server].0.processes();
        for id in processes.into_iter().filter_map(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            // It fails only for one that has ended, which is as good.
            let _ = kill_process(id, signal);
        }
    }
}
