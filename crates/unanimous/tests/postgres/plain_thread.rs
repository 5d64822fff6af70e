//! PostgreSQL under plain threads: its driver needs a runtime, which the thread enters.

use unanimous::thread::{Background, ThreadManager, wait};

use super::{Pair, builder, prepared};

/// Commits in both or in none, with savepoints, from a thread that has entered the background's runtime.
#[test]
fn two_databases_from_a_plain_thread() {
    let pair = Pair::new();
    let background = Background::start().unwrap();
    let _entered = background.enter();
    let (orders, billing) = pair.stores();
    let manager = ThreadManager::explicit(background.build(builder(&orders, &billing)).unwrap());
    let write = |value: &'static str| {
        let tx = manager.get().unwrap();
        for store in [&orders, &billing] {
            wait(tx.join(store).unwrap().execute("insert into t (v) values ($1)", &[&value])).unwrap();
        }
    };
    manager.begin().unwrap();
    write("a");
    let savepoint = manager.savepoint().unwrap();
    write("undone");
    savepoint.rollback().unwrap();
    assert_eq!(manager.commit().unwrap().pending, 0);
    manager.begin().unwrap();
    write("b");
    manager.abort().unwrap();
    assert_eq!(pair.values(), ["a", "a"]);
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
    assert_eq!(manager.recover(), []);
}
