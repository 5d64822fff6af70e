//! The levels as they are called.

use unanimous_proof::LEVELS;

#[test]
fn names_are_words_and_given_once() {
    for (i, level) in LEVELS.iter().enumerate() {
        assert!(level.name.bytes().all(|b| b.is_ascii_lowercase()), "{}", level.name);
        assert!(LEVELS[..i].iter().all(|other| other.name != level.name), "{} twice", level.name);
    }
}
