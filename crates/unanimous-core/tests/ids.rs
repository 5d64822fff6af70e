//! Ids: each names whom to ask, has one text, and is not taken for another.

use unanimous_core::xid::{Roster, StoreTag};
use unanimous_core::{BranchId, DeciderId, Incarnation, LogId, Owner, StoreId, TransactionId};

fn transaction() -> TransactionId {
    let log = LogId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    Owner { log, incarnation: Incarnation::new(3, 0x12_3456_789a) }.transaction(42)
}

fn branch(decider: DeciderId, number: u16) -> BranchId {
    BranchId { transaction: transaction(), decider, number }
}

/// Rule 2: read back, an id names its transaction, its incarnation, its decider and its number.
#[test]
fn a_branchs_id_names_its_decider() {
    let store: StoreId = "pg-7301-16384".parse().unwrap();
    for decider in [DeciderId::Log, DeciderId::Store(store)] {
        let id = branch(decider.clone(), 7);
        let read: BranchId = id.to_string().parse().unwrap();
        assert_eq!(read, id);
        assert_eq!((read.decider, read.number), (decider, 7));
        assert_eq!(read.transaction.incarnation, Incarnation { counter: 3, nonce: 0x12_3456_789a });
        assert_eq!(BranchId::from_parts(&id.gtrid(), &id.bqual()).unwrap(), id);
    }
}

/// The texts are in stores for ever.
#[test]
fn an_ids_text_stays_as_it_is() {
    let id = branch(DeciderId::Log, 7);
    assert_eq!(transaction().to_string(), "014d2pf2dbsqqg28t5cy4tqkff.3.28t5cy4t.42");
    assert_eq!(id.to_string(), format!("u1:{}:log.7", transaction()));
    assert_eq!((id.gtrid(), id.bqual()), (transaction().to_string(), "log.7".to_owned()));
    assert_eq!(format!("{id:?} {:?} {:?}", id.transaction, id.transaction.log), {
        format!("{id} {} {}", transaction(), transaction().log)
    });
}

/// The bounds: an id fits X/Open's XID and a PostgreSQL transaction identifier.
#[test]
fn the_longest_ids_fit() {
    let owner = Owner { log: LogId(u128::MAX), incarnation: Incarnation::new(u32::MAX, u64::MAX) };
    let transaction = owner.transaction(unanimous_core::xid::MAX_SEQUENCE);
    let store: StoreId = "s".repeat(StoreId::MAX_LENGTH).parse().unwrap();
    let id = BranchId { transaction, decider: DeciderId::Store(store), number: u16::MAX };
    assert_eq!((id.gtrid().len(), id.bqual().len()), (62, 46));
    assert!(id.to_string().len() <= 113);
    assert_eq!(id.to_string().parse::<BranchId>().unwrap(), id);
    assert_eq!(transaction.incarnation.nonce, (1 << Incarnation::NONCE_BITS) - 1, "40 bits of it");
    assert_eq!(transaction.owner(), owner);
}

/// Each number has one text; what is nearly an id is none.
#[test]
fn what_is_nearly_an_id_is_none() {
    let good = transaction().to_string();
    assert_eq!(good.parse::<TransactionId>().unwrap(), transaction());
    let log = transaction().log.to_string();
    for wrong in [
        String::new(),
        format!("{good}."),
        format!("{good}.1"),
        format!(" {good}"),
        good.to_uppercase(),
        good.replace(".42", ".042"),
        good.replace(".42", ".+42"),
        good.replace(".42", "."),
        good.replace(".42", ".1000000000000000"),
        good.replace(".3.", ".4294967296."),
        good.replace(".28t5cy4t.", ".28t5cy4."),
        good.replace(".28t5cy4t.", ".28t5cy4l."),
        good.replace(&log, &log[1..]),
        good.replace(&log, &format!("z{}", &log[1..])),
        "014d2pf2dbsqqg28t5cy4tqkff.3.28t5cy4t".to_owned(),
    ] {
        let error = wrong.parse::<TransactionId>().unwrap_err().to_string();
        assert!(error.contains("is not a"), "{wrong:?}: {error}");
    }
    assert_eq!(good.replace(".42", ".999999999999999").parse::<TransactionId>().unwrap().sequence, 999_999_999_999_999);
    assert_eq!(good.replace(".42", ".0").parse::<TransactionId>().unwrap().sequence, 0);
    for wrong in ["u1:x:log.7", "u2:T:log.7", "T:log.7", "u1:T:log", "u1:T:log.65536", "u1:T:log.07", "u1:T:.7", "u1:T"]
    {
        assert!(wrong.replace('T', &good).parse::<BranchId>().is_err(), "{wrong}");
    }
}

/// A store's identity: its characters, its length, and never the word that stands for the log.
#[test]
fn a_stores_identity() {
    for good in ["a", "0-9", "z".repeat(40).as_str()] {
        assert_eq!(good.parse::<StoreId>().unwrap().as_str(), good);
    }
    for wrong in ["", "log", "A", "a.b", "a b", "ä", "z".repeat(41).as_str()] {
        assert!(wrong.parse::<StoreId>().is_err(), "{wrong:?}");
    }
    assert_eq!(StoreId::from_random(1).to_string(), "00000000000000000000000001");
    assert_eq!(format!("{:?}", StoreId::from_random(1)), "00000000000000000000000001");
    assert_eq!("log".parse::<DeciderId>().unwrap(), DeciderId::Log);
    assert_eq!("logs".parse::<DeciderId>().unwrap(), DeciderId::Store("logs".parse().unwrap()));
}

fn tag(store: &str) -> StoreTag {
    StoreTag::of(&store.parse().unwrap())
}

/// An id that lists all participants names them in each branch's id, and reads back; its text stays as it is.
#[test]
fn an_id_lists_all_participants() {
    let roster = Roster::new([(2, tag("billing")), (0, tag("orders"))]).unwrap();
    let id = branch(DeciderId::Together(roster.clone()), 2);
    assert_eq!(id.bqual(), format!("log.0{}.2{}.2", tag("orders"), tag("billing")));
    assert_eq!(tag("orders").to_string(), "s7x4jx7v");
    assert_eq!(id.to_string().parse::<BranchId>().unwrap(), id);
    assert_eq!(roster.iter().collect::<Vec<_>>(), [(0, tag("orders")), (2, tag("billing"))]);
    assert_eq!((roster.lists(0), roster.lists(1), roster.lists(2)), (true, false, true));
    assert_eq!(roster.to_string().parse::<Roster>().unwrap(), roster);
    assert!(Roster::new([]).is_none());
    assert!(Roster::new([(1, tag("orders")), (1, tag("billing"))]).is_none(), "a number comes once");
    let (one, other) = (format!("0{}", tag("orders")), format!("2{}", tag("billing")));
    for wrong in [
        "log.".to_owned(),
        format!("log.{one}."),
        format!("log..{one}"),
        format!("log.{other}.{one}"),
        format!("log.{one}.{one}"),
        format!("log.0{one}"),
        format!("log.{}", &one[1..]),
        format!("logs.{one}"),
        format!("log.65536{}", tag("orders")),
        format!("log.0{}", "z1234567".replace('1', "l")),
    ] {
        assert!(wrong.parse::<DeciderId>().is_err(), "{wrong:?}");
    }
}

/// However many branches there are, a roster that they say they fit is within the bounds of any id.
#[test]
fn the_longest_rosters_fit() {
    for (branches, most) in [(1, 4), (2, 4), (10, 4), (11, 3), (1000, 3), (1001, 3), (10_001, 2), (65_536, 2)] {
        assert_eq!(Roster::most(branches), most, "{branches}");
        let last = u16::try_from(branches - 1).unwrap();
        let listed = (0..most as u16).filter_map(|i| Some((last.checked_sub(i)?, tag("orders"))));
        let id = branch(DeciderId::Together(Roster::new(listed).unwrap()), last);
        assert!(id.bqual().len() <= 47, "{id}");
        assert_eq!(id.to_string().parse::<BranchId>().unwrap(), id);
    }
}
