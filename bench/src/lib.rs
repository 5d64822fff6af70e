//! What the rows of `cargo xtask bench` and the developers' `cargo bench` have in common: the same inner loops.
//!
//! Must not know how anything is measured.

mod nowhere;

use std::convert::Infallible;

use http::{Request, Response};
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt, service_fn};
use unanimous::http::{TransactionLayer, transaction};
use unanimous::log::MemoryLog;
use unanimous::{TransactionManager, Tx};

pub use nowhere::Nowhere;

/// As many stores as a transaction joins at most here.
pub const MOST: usize = 16;

/// A manager over stores that do nothing and a log in memory, on one thread: what is left is the library's own, and a commit, which
/// is a task of its own, costs no change of threads.
pub struct Inner {
    pub runtime: Runtime,
    pub manager: TransactionManager,
    pub stores: Vec<Nowhere>,
}

impl Inner {
    /// # Panics
    ///
    /// When there is no runtime to be had.
    #[expect(clippy::new_without_default, reason = "it starts a runtime")]
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a thread's runtime");
        let stores: Vec<_> = (0..MOST).map(|number| Nowhere::new(&format!("store-{number}"))).collect();
        let builder = TransactionManager::builder(MemoryLog::new());
        let builder = stores.iter().fold(builder, |builder, store| builder.resource(store.clone()));
        let manager = runtime.block_on(builder.build()).expect("stores that do nothing are there");
        Self { runtime, manager, stores }
    }

    /// So many times a transaction of `branches` branches, from begin to commit.
    pub fn transactions(&self, turns: u32, branches: usize) {
        self.runtime.block_on(async {
            for _ in 0..turns {
                let transaction = self.manager.begin();
                join(&transaction, &self.stores[..branches]).await;
                transaction.commit().await.expect("stores that do nothing commit");
            }
        });
    }

    /// So many times a task that does nothing: what any detached commit costs at least.
    pub fn tasks(&self, turns: u32) {
        self.runtime.block_on(async {
            for _ in 0..turns {
                tokio::spawn(async {}).await.expect("it does nothing");
            }
        });
    }

    /// So many requests, one after another.
    pub fn requests(&self, turns: u32, request: fn() -> Request<()>, service: &mut impl Answering) {
        self.runtime.block_on(async {
            for _ in 0..turns {
                let Ok(response) = service.ready().await.expect("it is always ready").call(request()).await;
                assert_eq!(response.status(), 200);
            }
        });
    }

    /// The service that the others are compared with.
    pub fn bare(&self) -> impl Answering + use<> {
        service_fn(|_: Request<()>| async { answer() })
    }

    /// The same in the layer; it asks for no transaction.
    pub fn layered(&self) -> impl Answering + use<> {
        TransactionLayer::new(self.manager.clone()).layer(self.bare())
    }

    /// In the layer, joins two branches.
    pub fn layered_with_two(&self) -> impl Answering + use<> {
        let two = self.two();
        TransactionLayer::new(self.manager.clone()).layer(service_fn(move |request: Request<()>| {
            let two = two.clone();
            async move {
                let tx = transaction(request.extensions()).expect("the layer is around this service");
                join(&tx, &two).await;
                answer()
            }
        }))
    }

    /// Joins the same two and commits by itself, without the layer.
    pub fn two_by_hand(&self) -> impl Answering + use<> {
        let (manager, two) = (self.manager.clone(), self.two());
        service_fn(move |_: Request<()>| {
            let (transaction, two) = (manager.begin(), two.clone());
            async move {
                join(&transaction, &two).await;
                transaction.commit().await.expect("stores that do nothing commit");
                answer()
            }
        })
    }

    fn two(&self) -> [Nowhere; 2] {
        [self.stores[0].clone(), self.stores[1].clone()]
    }
}

/// A request with nothing in its extensions.
pub fn request() -> Request<()> {
    Request::new(())
}

/// A request as it comes from a server or a layer that has left something in its extensions.
pub fn request_with_extensions() -> Request<()> {
    let mut request = request();
    request.extensions_mut().insert(Peer(7));
    request
}

#[derive(Clone)]
#[expect(dead_code, reason = "nobody reads it")]
struct Peer(u64);

/// A service for requests without a body.
pub trait Answering: Service<Request<()>, Response = Response<String>, Error = Infallible> {}

impl<S: Service<Request<()>, Response = Response<String>, Error = Infallible>> Answering for S {}

fn answer() -> Result<Response<String>, Infallible> {
    Ok(Response::new(String::new()))
}

/// Joins all of them.
///
/// # Panics
///
/// When one can't be joined.
pub async fn join(tx: &Tx, stores: &[Nowhere]) {
    for store in stores {
        tx.join(store).await.expect("stores that do nothing are there");
    }
}
