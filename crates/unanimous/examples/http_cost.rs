//! What the HTTP layer costs in process, side by side with the bare service: time and allocations for each request.
//!
//! ```sh
//! cargo run --release -p unanimous --features http --example http_cost -- [ROUNDS]
//! ```
//!
//! The stores do nothing and the log is in memory, so that what is left is the layer's and the manager's own. The sides take turns, so
//! that all meet the same noise. The counting of allocations is in the times, with some nanoseconds for each.

use std::convert::Infallible;
use std::time::Instant;

use http::{Request, Response};
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt, service_fn};
use unanimous::http::{TransactionLayer, transaction};
use unanimous::log::MemoryLog;
use unanimous::{
    BoxError, Branch, BranchContext, BranchError, BranchId, Capability, ResourceManager, StoreError, StoreId,
    TransactionManager, Tx,
};

/// Requests in a round of a side: few, so that most rounds are over before the scheduler takes the processor away.
const REQUESTS: u32 = 100;

fn main() -> Result<(), BoxError> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(2_000), |text| text.parse())?;
    // One thread: the commit, which is a task of its own, costs no change of threads then.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (one, two) = (Nowhere("one"), Nowhere("two"));
    let builder = TransactionManager::builder(MemoryLog::new()).resource(one.clone()).resource(two.clone());
    let manager = runtime.block_on(builder.build())?;

    let mut bare = service_fn(|_: Request<()>| async { answer() });
    let mut joins_nothing = TransactionLayer::new(manager.clone()).layer(bare);
    let mut joins_two = TransactionLayer::new(manager.clone()).layer(service_fn(|request: Request<()>| async move {
        let tx = transaction(request.extensions()).expect("the layer is around this service");
        join_both(&tx).await;
        answer()
    }));
    let mut by_hand = service_fn(|_: Request<()>| {
        let transaction = manager.begin();
        async move {
            join_both(&transaction).await;
            transaction.commit().await.expect("stores that do nothing commit");
            answer()
        }
    });

    let mut sides =
        ["bare", "layer, joins nothing", "layer, joins two branches", "bare, the two by hand"].map(Side::new);
    for round in 0..rounds + 100 {
        let taken = [
            measure(&runtime, &mut bare),
            measure(&runtime, &mut joins_nothing),
            measure(&runtime, &mut joins_two),
            measure(&runtime, &mut by_hand),
        ];
        // The first ones warm up.
        if round >= 100 {
            for (side, taken) in sides.iter_mut().zip(taken) {
                side.rounds.push(taken);
            }
        }
    }
    for side in sides {
        side.tell();
    }
    Ok(())
}

type Answer = Result<Response<String>, Infallible>;

fn answer() -> Answer {
    Ok(Response::new(String::new()))
}

async fn join_both(tx: &Tx) {
    for store in [Nowhere("one"), Nowhere("two")] {
        tx.join(&store).await.expect("stores that do nothing are there");
    }
}

/// Nanoseconds and allocations for a request, over a round.
fn measure<S>(runtime: &Runtime, service: &mut S) -> [f64; 2]
where
    S: Service<Request<()>, Response = Response<String>, Error = Infallible>,
{
    let mut nanoseconds = 0.0;
    let allocations = allocation_counter::measure(|| {
        runtime.block_on(async {
            let begin = Instant::now();
            for _ in 0..REQUESTS {
                let Ok(response) = service.ready().await.expect("it is always ready").call(Request::new(())).await;
                assert_eq!(response.status(), 200);
            }
            nanoseconds = begin.elapsed().as_nanos() as f64;
        });
    });
    [nanoseconds, allocations.count_total as f64].map(|sum| sum / f64::from(REQUESTS))
}

struct Side {
    name: &'static str,
    rounds: Vec<[f64; 2]>,
}

impl Side {
    fn new(name: &'static str) -> Self {
        Self { name, rounds: Vec::new() }
    }

    fn tell(self) {
        let [times, allocations] = [0, 1].map(|which| {
            let mut values: Vec<f64> = self.rounds.iter().map(|round| round[which]).collect();
            values.sort_unstable_by(f64::total_cmp);
            move |part: usize| values[(values.len() - 1) * part / 100]
        });
        #[expect(clippy::print_stdout, reason = "an example talks")]
        {
            println!(
                "{:26} p10 {:7.0} ns   p50 {:7.0} ns   p90 {:7.0} ns   allocations {:5.1}",
                self.name,
                times(10),
                times(50),
                times(90),
                allocations(50)
            );
        }
    }
}

/// A store that keeps nothing, as its own branch.
#[derive(Clone)]
struct Nowhere(&'static str);

impl Branch for Nowhere {
    fn capability(&self) -> Capability {
        Capability::TwoPhase
    }

    async fn prepare(&self, _id: &BranchId) -> Result<(), BranchError> {
        Ok(())
    }

    async fn commit(&self) -> Result<(), BranchError> {
        Ok(())
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        Ok(())
    }
}

impl ResourceManager for Nowhere {
    type Branch = Self;
    type Options = ();

    fn name(&self) -> &str {
        self.0
    }

    fn capability(&self) -> Capability {
        Capability::TwoPhase
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        self.0.parse().map_err(StoreError::new)
    }

    async fn begin(&self, _context: &BranchContext, (): ()) -> Result<Self, BranchError> {
        Ok(self.clone())
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        Ok(Vec::new())
    }

    async fn commit(&self, _id: &BranchId) -> Result<(), BranchError> {
        Ok(())
    }

    async fn rollback(&self, _id: &BranchId) -> Result<(), BranchError> {
        Ok(())
    }
}
