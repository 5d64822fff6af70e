//! The order desk: its stores, its transaction manager, and what is written and read in a transaction.
//!
//! The only file of the demo that works with the stores. Must not know HTTP.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use unanimous::files::{Files, FilesError};
use unanimous::log::{FileLog, OpenError};
use unanimous::{JoinError, TransactionId, TransactionManager, Tx, Undrained};

use super::history::{Ended, History};
use super::order::{Entered, NewOrder, Order};
use super::orders::keys::Keys;
use super::orders::{Orders, OrdersError, chain};
use super::page::{self, Told};
use super::stores::{Stores, held};
use crate::failure::Failure;

/// Where the parts of the data folder are.
pub(crate) const DECISIONS: &str = "decisions";
pub(crate) const RECEIPTS: &str = "receipts";

/// No order takes as long; one whose client sends nothing more must not hold the database for ever.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// How many orders the page shows.
const ON_PAGE: u64 = 20;
/// The beginning of the names of files that are put in the way of an order that shall fail at the vote.
const IN_THE_WAY: &str = "in-the-way-";

/// Everything that a handler needs. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    pub(crate) manager: TransactionManager,
    orders: Orders,
    receipts: Files,
    history: History,
    check: Arc<str>,
}

/// A store could not serve a request. The request's transaction aborts.
#[derive(Debug)]
pub(crate) struct DeskError {
    transaction: TransactionId,
    source: Cause,
}

#[derive(Debug)]
enum Cause {
    Join(JoinError),
    Orders(OrdersError),
    Receipts(FilesError),
    Receipt(serde_json::Error),
    InTheWay(io::Error),
}

impl From<JoinError> for Cause {
    fn from(error: JoinError) -> Self {
        Self::Join(error)
    }
}

impl From<OrdersError> for Cause {
    fn from(error: OrdersError) -> Self {
        Self::Orders(error)
    }
}

impl From<FilesError> for Cause {
    fn from(error: FilesError) -> Self {
        Self::Receipts(error)
    }
}

impl DeskError {
    /// The request's transaction.
    pub(crate) fn transaction(&self) -> TransactionId {
        self.transaction
    }

    /// Whether the request may succeed when it is repeated at once.
    pub(crate) fn is_retryable(&self) -> bool {
        match &self.source {
            Cause::Join(error) => error.is_retryable(),
            Cause::Orders(error) => error.is_retryable(),
            Cause::Receipts(error) => error.is_retryable(),
            Cause::Receipt(_) | Cause::InTheWay(_) => false,
        }
    }

    /// Whether it may succeed when a store can be used again.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(&self.source, Cause::Orders(error) if error.is_unavailable())
    }

    /// The error and all its sources, for the server's own log.
    pub(crate) fn chain(&self) -> String {
        let error: &dyn Error = match &self.source {
            Cause::Join(error) => error,
            Cause::Orders(error) => error,
            Cause::Receipts(error) => error,
            Cause::Receipt(error) => error,
            Cause::InTheWay(error) => error,
        };
        chain(error)
    }
}

impl Desk {
    /// Opens the stores in this folder, and recovers what an earlier run has left.
    ///
    /// The log is made last of all. So where it is there, the stores were, and one that is missing then is gone: it is not made anew.
    /// A run that was killed before has left no log, and what it has made is completed.
    ///
    /// `conflict`: orders shall meet in one row. `check` is the command line that compares the stores, for the page.
    pub(crate) async fn open(data: &Path, stores: &Stores, conflict: bool, check: &str) -> Result<Self, Failure> {
        let (log, orders, receipts) = if has_log(data) {
            // The log first: its lock keeps a second demo away from the stores.
            let log = open_log(data).await?;
            let orders = Orders::open(data, stores, conflict, true).await?;
            let receipts = Files::open_existing("receipts", data.join(RECEIPTS)).await;
            (log, orders, receipts.map_err(|error| receipts_not_opened(data, &error))?)
        } else {
            let orders = Orders::open(data, stores, conflict, false).await?;
            let receipts = Files::open("receipts", data.join(RECEIPTS)).await;
            let receipts = receipts.map_err(|error| receipts_not_opened(data, &error))?;
            (open_log(data).await?, orders, receipts)
        };
        clear_the_way(receipts.root());
        let history = History::default();
        let seen = history.clone();
        let builder = TransactionManager::builder(log)
            .resource(receipts.clone())
            .time_limit(TIME_LIMIT)
            .observer(move |report| seen.add(Ended::from(report)));
        let manager = orders.register(builder).build().await;
        let manager = manager.map_err(|error| Failure::new("can't build the transaction manager").because(&error))?;
        let orders = orders.prepared(&manager).await?;
        Ok(Self { manager, orders, receipts, history, check: check.into() })
    }

    /// Where the keys of orders that are sent again are kept.
    pub(crate) fn keys(&self) -> Keys {
        self.orders.keys()
    }

    /// Lets what is committing end, and gives back what the stores hold.
    pub(crate) async fn close(&self, deadline: Duration) -> Result<(), Undrained> {
        let drained = self.manager.shutdown(deadline).await;
        self.orders.close().await;
        drained
    }

    /// What each order is written to, for people.
    pub(crate) fn described(&self) -> &'static str {
        self.orders.described()
    }

    /// What is still in doubt, in words.
    pub(crate) fn in_doubt(&self) -> Vec<String> {
        let doubts = self.manager.in_doubt();
        doubts.iter().map(|doubt| format!("in doubt in {}: {}", doubt.resource, doubt.why)).collect()
    }

    /// Writes an order and its receipt.
    pub(crate) async fn place(&self, tx: &Tx, new: &NewOrder) -> Result<Order, DeskError> {
        in_transaction(tx, async {
            let order = self.orders.place(tx, new).await?;
            let mut receipt = serde_json::to_vec_pretty(&order).map_err(Cause::Receipt)?;
            receipt.push(b'\n');
            tx.join(&self.receipts).await?.create(receipt_path(order.id), receipt).await?;
            Ok(order)
        })
        .await
    }

    /// Makes the receipts vote no when the transaction commits: a file that it wants to create is put there by somebody else first.
    pub(crate) async fn spoil(&self, tx: &Tx) -> Result<(), DeskError> {
        in_transaction(tx, async {
            let name = format!("{IN_THE_WAY}{}", tx.id().sequence);
            tx.join(&self.receipts).await?.create(&name, "never to be seen\n").await?;
            let path = self.receipts.root().join(name);
            fs::write(&path, "put here by fail=vote, outside of any transaction\n").map_err(Cause::InTheWay)?;
            tx.after_end(move |_| remove(&path));
            Ok(())
        })
        .await
    }

    /// The newest orders as a JSON array. Its length bounds the memory that this takes.
    pub(crate) async fn orders_json(&self, tx: &Tx, limit: u64) -> Result<Vec<u8>, DeskError> {
        in_transaction(tx, async {
            let start = Vec::from(b"[");
            let json = self.orders.newest(tx, limit, start, |json, order| {
                if json.len() > 1 {
                    json.extend_from_slice(b",\n ");
                }
                serde_json::to_writer(json, &order)
            });
            let mut json = json.await?;
            json.extend_from_slice(b"]\n");
            Ok(json)
        })
        .await
    }

    /// A receipt's file; none where there is none. Read in a transaction of its own: the request's would be aborted, and be shown as
    /// one that failed, where the answer is that there is no such receipt.
    pub(crate) async fn receipt(&self, id: i64) -> Result<Option<Vec<u8>>, DeskError> {
        let tx = self.manager.begin();
        let read =
            in_transaction(&tx, async { Ok(tx.join(&self.receipts).await?.read(receipt_path(id)).await?) }).await?;
        // It has only read: there is nothing that could fail to become durable.
        let _ = tx.commit().await;
        Ok(read)
    }

    /// The page, with a form that holds what was entered; what is told on top may depend on the last orders.
    pub(crate) async fn page(
        &self,
        entered: &Entered,
        told: impl FnOnce(&[Order]) -> Option<Told>,
    ) -> Result<String, DeskError> {
        let tx = self.manager.begin();
        let newest = self.orders.newest(&tx, ON_PAGE, Vec::new(), |newest, order| {
            newest.push(order);
            Ok(())
        });
        let orders = in_transaction(&tx, async { Ok(newest.await?) }).await;
        let orders = match orders {
            Ok(orders) => {
                // It has only read: there is nothing that could fail to become durable.
                let _ = tx.commit().await;
                Some(orders)
            }
            Err(error) if error.is_unavailable() => {
                tracing::warn!(error = error.chain(), "the page is shown without orders");
                None
            }
            Err(error) => return Err(error),
        };
        let desk = page::Desk {
            stores: self.orders.described(),
            parts: self.orders.parts(),
            check: &self.check,
            orders: orders.as_deref(),
            transactions: &self.history.last(),
        };
        Ok(page::page(told(orders.as_deref().unwrap_or_default()).as_ref(), entered, &desk))
    }
}

/// Names the transaction in what goes wrong.
async fn in_transaction<T>(tx: &Tx, work: impl Future<Output = Result<T, Cause>>) -> Result<T, DeskError> {
    work.await.map_err(|source| DeskError { transaction: tx.id(), source })
}

/// Whether a run came as far as to its decision log. A folder that can't be read counts as one: opening it says why.
pub(crate) fn has_log(data: &Path) -> bool {
    match fs::read_dir(data.join(DECISIONS)) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

async fn open_log(data: &Path) -> Result<FileLog, Failure> {
    FileLog::open(data.join(DECISIONS)).await.map_err(|error| match &error {
        OpenError::Held { .. } => held(data),
        _ => Failure::new("can't open the decision log").because(&error),
    })
}

fn receipts_not_opened(data: &Path, error: &FilesError) -> Failure {
    match error {
        FilesError::Gone { .. } => gone(data, RECEIPTS).because(error),
        _ => Failure::new("can't open the folder of receipts").because(error).hint("choose another folder with --data"),
    }
}

/// A store that the decision log says was there. To make it anew would pass for a store in which nothing was ever written.
pub(crate) fn gone(data: &Path, store: &str) -> Failure {
    let message = format!("{} is gone, and {} knows of it", data.join(store).display(), data.join(DECISIONS).display());
    Failure::new(message).hint("bring it back, from its disk or a backup; or start with a new data folder: --data DIR")
}

fn receipt_path(id: i64) -> String {
    format!("{id}.json")
}

/// Removes what a killed run had put in the way. The log's lock is held, so that no other run is using it.
fn clear_the_way(receipts: &Path) {
    let entries = fs::read_dir(receipts).into_iter().flatten().flatten();
    let in_the_way = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(IN_THE_WAY));
    in_the_way.map(|entry| entry.path()).for_each(|path: PathBuf| remove(&path));
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a file that was put in the way could not be removed");
    }
}

impl fmt::Display for DeskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the transaction {}: {}", self.transaction, self.chain())
    }
}
