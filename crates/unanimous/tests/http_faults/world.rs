//! The server of a cell: axum on a real socket, PostgreSQL and a folder as its stores, a log in files, and a gate at which one request
//! is held. It must not know who its clients are.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::error_handling::HandleErrorLayer;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::routing::{get, post};
use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceBuilder;
use unanimous::files::Files;
use unanimous::http::{TransactionLayer, default_commit_veto};
use unanimous::log::FileLog;
use unanimous::postgres::Postgres;
use unanimous::{
    BoxError, Branch, BranchContext, BranchError, BranchId, Capability, DecideError, Decider, DecisionLog,
    DecisionRecord, Known, Owner, ResourceManager, StoreError, StoreId, TransactionId, TransactionManager, Tx, Work,
};
use unanimous_testing::postgres::{Cluster, Database};

use crate::http_support::{Journal, Remark};

/// What a request is at when it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Both stores are joined and written to, and half of the request's body has been read.
    Body,
    /// The whole body has been read.
    Handler,
    /// PostgreSQL is about to vote; the folder does as it likes.
    Prepare,
    /// Both have voted, and the log is about to write.
    Decision,
    /// The decision is durable, and PostgreSQL is about to hear of it.
    PhaseTwo,
    /// The transaction has ended, and the head is out. The body never ends while it is held.
    Response,
}

pub(super) const STAGES: [Stage; 6] =
    [Stage::Body, Stage::Handler, Stage::Prepare, Stage::Decision, Stage::PhaseTwo, Stage::Response];

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Body => "body",
            Stage::Handler => "handler",
            Stage::Prepare => "prepare",
            Stage::Decision => "decision",
            Stage::PhaseTwo => "phase two",
            Stage::Response => "response",
        })
    }
}

/// What the stores hold when all is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stores {
    Both,
    Neither,
    /// One has it and the other has not: what must never be.
    Torn,
}

/// Lets requests by, but for those that come to the stage that is held.
#[derive(Clone)]
struct Gate {
    held: Arc<watch::Sender<Option<Stage>>>,
    journal: Journal,
}

impl Gate {
    fn is_held(&self, stage: Stage) -> bool {
        *self.held.borrow() == Some(stage)
    }

    async fn pass(&self, stage: Stage) {
        self.journal.add(format_args!("at {stage}"));
        let mut held = self.held.subscribe();
        // The sender is in `self`.
        held.wait_for(|&held| held != Some(stage)).await.unwrap();
    }
}

/// The time limit outside of the layer. It passes when a test says so: the clock stands still.
pub(super) const LIMIT: Duration = Duration::from_secs(1);

/// How long a cell may take. Never reached when all is well; the clock runs from then on, and what is waited for gives up.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct World {
    pub(super) address: SocketAddr,
    pub(super) journal: Journal,
    manager: TransactionManager,
    gate: Gate,
    orders: Database<'static>,
    folder: tempfile::TempDir,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    _clock: mpsc::Sender<()>,
}

impl World {
    /// A server in which requests are held at this stage. To be called with the clock paused.
    pub(super) async fn new(held: Option<Stage>) -> Self {
        Self::with(held, |layer| layer.commit_veto(default_commit_veto)).await
    }

    /// The same with a layer that the test completes, for instance by no veto.
    pub(super) async fn with(held: Option<Stage>, complete: impl FnOnce(TransactionLayer) -> TransactionLayer) -> Self {
        // The clock of a test that waits for sockets must not jump ahead, and it does not while a blocking task runs.
        let (clock, ended) = mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || ended.recv_timeout(PATIENCE));

        let journal = Journal::new();
        let gate = Gate { held: Arc::new(watch::Sender::new(held)), journal: journal.clone() };
        let orders = Cluster::shared().database().unwrap();
        orders.psql("create table orders (item text primary key)").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let shop = Shop {
            orders: Gated { inner: Postgres::from_url("orders", &orders.url()).unwrap(), gate: gate.clone() },
            receipts: Files::open("receipts", folder.path().join("receipts")).await.unwrap(),
            gate: gate.clone(),
        };
        let log = FileLog::open(folder.path().join("decisions")).await.unwrap();
        let manager = TransactionManager::builder(Gated { inner: log, gate: gate.clone() })
            .resource(shop.orders.clone())
            .resource(shop.receipts.clone())
            .observer({
                let journal = journal.clone();
                move |report| journal.add(format_args!("report {}", report.outcome))
            })
            .build()
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = app(shop, complete(TransactionLayer::new(manager.clone())));
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, journal, manager, gate, orders, folder, server, _clock: clock }
    }

    /// Lets what is held go on.
    pub(super) fn release(&self) {
        self.gate.held.send_replace(None);
    }

    /// Waits until the transactions have ended so, in this order, and nothing of them is left in doubt. Tells what is stored of an item.
    pub(super) async fn ended(&self, outcomes: &[&str], item: &str) -> Stores {
        let reported = |entry: &&String| entry.starts_with("report ");
        let all = |entries: &[String]| entries.iter().filter(reported).count() >= outcomes.len();
        self.journal.until_so("the last report", all).await;
        assert_eq!(self.journal.of("report"), outcomes, "in {:#?}", self.journal.entries());
        assert!(self.manager.recover().await.is_empty(), "something was left for recovery");
        let prepared = "select count(*) from pg_prepared_xacts where database = current_database()";
        assert_eq!(self.orders.psql(prepared).unwrap(), "0");
        let manifests = self.folder.path().join("receipts/.unanimous/prepared");
        assert_eq!(std::fs::read_dir(manifests).unwrap().count(), 0);
        self.stored(item)
    }

    /// What strangers see in the stores of an item.
    pub(super) fn stored(&self, item: &str) -> Stores {
        let row = self.orders.psql(&format!("select item from orders where item = '{item}'")).unwrap();
        let file = std::fs::read_to_string(self.folder.path().join("receipts").join(item)).ok();
        match (row.as_str(), file.as_deref()) {
            ("", None) => Stores::Neither,
            (row, Some(file)) if row == item && file == item => Stores::Both,
            _ => Stores::Torn,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn app(shop: Shop, transactions: TransactionLayer) -> Router {
    let journal = shop.gate.journal.clone();
    Router::new()
        .route("/orders/{item}", post(order))
        .route("/refuse/{item}", post(refuse))
        .route("/unread/{item}", post(leave_unread))
        .route("/alive", get(async || "alive"))
        .with_state(shop)
        .layer(transactions)
        .layer(from_fn(move |request: Request, next: Next| {
            // Dropped when the answer is there, and when nobody waits for it any more.
            let left = Remark(journal.clone(), "left the service");
            async move {
                let _left = left;
                next.run(request).await
            }
        }))
        .layer(
            ServiceBuilder::new()
                .layer(HandleErrorLayer::new(async |_: BoxError| StatusCode::REQUEST_TIMEOUT))
                .timeout(LIMIT),
        )
}

#[derive(Clone)]
struct Shop {
    orders: Gated<Postgres>,
    receipts: Files,
    gate: Gate,
}

impl Shop {
    async fn store(&self, tx: &Tx, item: &str) -> Result<(), BoxError> {
        tx.join(&self.orders).await?.execute("insert into orders (item) values ($1)", &[&item]).await?;
        tx.join(&self.receipts).await?.create(item, item).await?;
        Ok(())
    }
}

type Item = axum::extract::Path<String>;

async fn order(tx: Tx, State(shop): State<Shop>, item: Item, body: Body) -> Result<(StatusCode, Body), StatusCode> {
    shop.store(&tx, &item).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
        shop.gate.journal.add(format_args!("at {}", Stage::Body));
    }
    shop.gate.pass(Stage::Handler).await;
    if !shop.gate.is_held(Stage::Response) {
        return Ok((StatusCode::CREATED, Body::from("stored")));
    }
    let (gate, over) = (shop.gate.clone(), Remark(shop.gate.journal.clone(), "left the body"));
    let endless = stream::repeat(Bytes::from_static(&[b'.'; 1 << 14]));
    let body = endless.take_while(move |_| {
        let _ = &over;
        std::future::ready(gate.is_held(Stage::Response))
    });
    Ok((StatusCode::CREATED, Body::from_stream(body.map(Ok::<_, BoxError>))))
}

/// Stores, and refuses when it has seen the head.
async fn refuse(tx: Tx, State(shop): State<Shop>, item: Item) -> StatusCode {
    match shop.store(&tx, &item).await {
        Ok(()) => StatusCode::PAYLOAD_TOO_LARGE,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Stores, and never looks at the body.
async fn leave_unread(tx: Tx, State(shop): State<Shop>, item: Item) -> StatusCode {
    shop.store(&tx, &item).await.unwrap();
    shop.gate.pass(Stage::Handler).await;
    StatusCode::CREATED
}

/// The same store, branch or log, with the gate in its way.
#[derive(Clone)]
struct Gated<R> {
    inner: R,
    gate: Gate,
}

impl<R> Deref for Gated<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.inner
    }
}

impl<B: Branch> Branch for Gated<B> {
    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    fn sort_key(&self) -> String {
        self.inner.sort_key()
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        self.inner.flush().await
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        self.gate.pass(Stage::Prepare).await;
        self.inner.prepare(id).await
    }

    async fn commit(&self) -> Result<(), BranchError> {
        self.gate.pass(Stage::PhaseTwo).await;
        self.inner.commit().await
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        self.inner.rollback().await
    }

    async fn commit_one_phase(&self, id: &BranchId) -> Result<(), BranchError> {
        self.inner.commit_one_phase(id).await
    }

    fn revoke(&self) {
        self.inner.revoke();
    }
}

impl<R: ResourceManager> ResourceManager for Gated<R> {
    type Branch = Gated<R::Branch>;
    type Options = R::Options;

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        self.inner.identity().await
    }

    async fn begin(&self, context: &BranchContext, options: R::Options) -> Result<Self::Branch, BranchError> {
        Ok(Gated { inner: self.inner.begin(context, options).await?, gate: self.gate.clone() })
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        self.inner.in_doubt().await
    }

    fn durably_in_doubt(&self) -> Option<impl Future<Output = Result<Vec<BranchId>, StoreError>> + Send> {
        self.inner.durably_in_doubt()
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        self.inner.commit(id).await
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        self.inner.rollback(id).await
    }
}

impl<L: DecisionLog> Decider for Gated<L> {
    async fn lookup(&self, transaction: TransactionId) -> Result<Known, StoreError> {
        self.inner.lookup(transaction).await
    }

    async fn unfinished(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        self.inner.unfinished().await
    }

    fn forget(&self, transaction: TransactionId) {
        self.inner.forget(transaction);
    }
}

impl<L: DecisionLog> DecisionLog for Gated<L> {
    fn owner(&self) -> Owner {
        self.inner.owner()
    }

    fn take(&self) -> bool {
        self.inner.take()
    }

    fn ready(&self) -> Result<(), BoxError> {
        self.inner.ready()
    }

    async fn decide(&self, record: DecisionRecord) -> Result<(), DecideError> {
        self.gate.pass(Stage::Decision).await;
        self.inner.decide(record).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
