use std::sync::Mutex;

use unanimous::*;

#[derive(Default)]
pub(crate) struct MemoryLog(Mutex<Vec<DecisionRecord>>);

impl MemoryLog {
    pub(crate) fn new() -> Self {
        Self::default()
    }
}

impl Decider for MemoryLog {
    async fn lookup(&self, transaction: TransactionId) -> Result<Known, StoreError> {
        let known = self.0.lock().unwrap().iter().find(|r| r.transaction == transaction).cloned();
        Ok(known.map_or(Known::Abort, Known::Commit))
    }
    async fn unfinished(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        Ok(self.0.lock().unwrap().clone())
    }
    fn forget(&self, transaction: TransactionId) {
        self.0.lock().unwrap().retain(|r| r.transaction != transaction);
    }
}

impl DecisionLog for MemoryLog {
    fn owner(&self) -> Owner {
        Owner { log: LogId(7), incarnation: Incarnation::new(1, 7) }
    }
    fn ready(&self) -> Result<(), BoxError> {
        Ok(())
    }
    async fn decide(&self, record: DecisionRecord) -> Result<(), DecideError> {
        self.0.lock().unwrap().push(record);
        Ok(())
    }
    async fn close(&self) {}
}
