//! The suite's report, as an adapter's author reads it.

use std::sync::atomic::{AtomicUsize, Ordering};

use unanimous::{BoxError, Capability};
use unanimous_testing::conformance::{self, BranchOf, Subject};
use unanimous_testing::memory::{Journal, MemoryStore};

const FIRST: &str = "branch::what_wrote_says_so_and_is_not_seen";

/// What is wrong with the subject.
#[derive(PartialEq)]
enum Wrong {
    SeesEverything,
    CantRead,
}

struct Stores {
    wrong: Wrong,
    places: AtomicUsize,
}

impl Stores {
    fn new(wrong: Wrong) -> Self {
        Self { wrong, places: AtomicUsize::new(0) }
    }
}

impl Subject for Stores {
    type Resource = MemoryStore;
    type Place = MemoryStore;

    async fn place(&self) -> Result<MemoryStore, BoxError> {
        let number = self.places.fetch_add(1, Ordering::Relaxed);
        Ok(MemoryStore::new(&format!("place-{number}"), Capability::TwoPhase, &Journal::default()))
    }

    async fn open(&self, place: &MemoryStore) -> Result<MemoryStore, BoxError> {
        Ok(place.clone())
    }

    async fn write(&self, branch: &BranchOf<Self>, key: &str) -> Result<(), BoxError> {
        Ok(branch.put(key)?)
    }

    async fn is_there(&self, place: &MemoryStore, key: &str) -> Result<bool, BoxError> {
        Ok(self.wrong == Wrong::SeesEverything || place.keys().iter().any(|known| known == key))
    }

    async fn read(&self, _: &BranchOf<Self>) -> Result<(), BoxError> {
        if self.wrong == Wrong::CantRead { Err("it can't read".into()) } else { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn what_to_mend_first_is_said_above_the_failures() {
    let report = conformance::report(Stores::new(Wrong::SeesEverything)).await;
    assert_eq!(report.failed.first().map(|failure| failure.check), Some(FIRST));
    assert!(report.failed.len() > 10, "{report}");
    let text = report.to_string();
    let advice = text.find(&format!("mend {FIRST} first")).unwrap();
    assert!(advice < text.find("duty:").unwrap(), "{text}");
}

#[tokio::test(start_paused = true)]
async fn other_failures_are_told_without_advice() {
    let report = conformance::report(Stores::new(Wrong::CantRead)).await;
    assert_eq!(report.passed.first(), Some(&FIRST), "it is made first");
    let failed: Vec<_> = report.failed.iter().map(|failure| failure.check).collect();
    assert_eq!(failed, ["branch::what_only_read_says_so"]);
    assert!(!report.to_string().contains("mend"), "{report}");
}
