//! A branch's manifest: its promise, as text that people can read, with a checksum of its own.
//!
//! ```text
//! unanimous files manifest 1
//! branch u1:00000000000000000000000001.1.00000001.7:log.0
//! store 4k2r...
//! state prepared
//! stage 0c9d...
//! operations 3
//! create 0 11 b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9 receipts/7.json
//! replace 1 0 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 last
//! delete 2 receipts/6.json
//! sha256 <of everything above>
//! ```
//!
//! The numbers are an operation's place (its content is `stage/STAGE.PLACE`) and the content's length in bytes.
//! Must not know files: bytes in, bytes out.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use unanimous_core::{BranchId, StoreId};

use super::path::RelPath;

const FIRST_LINE: &str = "unanimous files manifest 1";

/// Whether a manifest waits for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In doubt: the branch's decider knows.
    Prepared,
    /// The manifest is the decision to commit: a one-phase commit of several files.
    Decided,
}

impl State {
    pub(super) fn word(self) -> &'static str {
        match self {
            State::Prepared => "prepared",
            State::Decided => "decided",
        }
    }
}

/// What a file's content will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) length: u64,
    pub(super) hash: [u8; 32],
}

impl Content {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { length: bytes.len() as u64, hash: Sha256::digest(bytes).into() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Create(Content),
    Replace(Content),
    Delete,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) path: RelPath,
    pub(super) action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) branch: BranchId,
    pub(super) store: StoreId,
    pub(super) state: State,
    /// The common part of the names of its files in `stage/`.
    pub(super) stage: String,
    pub(super) operations: Vec<Operation>,
}

impl Manifest {
    /// The manifest's name in `prepared/`: at most 122 bytes.
    pub(super) fn file_name(branch: &BranchId, state: State) -> String {
        format!("{branch}.{}", state.word())
    }

    /// What a name in `prepared/` stands for.
    pub(super) fn parse_name(name: &str) -> Option<(BranchId, State)> {
        let (branch, word) = name.rsplit_once('.')?;
        let state = [State::Prepared, State::Decided].into_iter().find(|state| state.word() == word)?;
        let branch: BranchId = branch.parse().ok()?;
        (Self::file_name(&branch, state) == name).then_some((branch, state))
    }

    /// The name in `stage/` of the content of the operation at `place`, or of the file that it takes away.
    pub(super) fn staged(&self, place: usize) -> String {
        format!("{}.{place}", self.stage)
    }

    pub(super) fn encode(&self) -> String {
        let mut text = format!(
            "{FIRST_LINE}\nbranch {}\nstore {}\nstate {}\nstage {}\noperations {}\n",
            self.branch,
            self.store,
            self.state.word(),
            self.stage,
            self.operations.len()
        );
        for (place, operation) in self.operations.iter().enumerate() {
            let path = operation.path.escaped();
            let (word, content) = match &operation.action {
                Action::Create(content) => ("create", Some(content)),
                Action::Replace(content) => ("replace", Some(content)),
                Action::Delete => ("delete", None),
            };
            let _ = write!(text, "{word} {place} ");
            if let Some(content) = content {
                let _ = write!(text, "{} {} ", content.length, hex(&content.hash));
            }
            text.push_str(&path);
            text.push('\n');
        }
        let check = hex(&Sha256::digest(text.as_bytes()).into());
        let _ = writeln!(text, "sha256 {check}");
        text
    }

    /// The manifest that [`encode`](Self::encode) wrote; what is wrong with it otherwise.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        // The first line first: a later version's checksum may be of another kind.
        let first = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
        if first != FIRST_LINE.as_bytes() {
            return Err(format!("its first line is not {FIRST_LINE:?}; a later version may have written it"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
        let (body, check) = text
            .strip_suffix('\n')
            .and_then(|text| text.rsplit_once('\n'))
            .and_then(|(body, last)| Some((&text[..body.len() + 1], last.strip_prefix("sha256 ")?)))
            .ok_or("it has no checksum at its end; it is cut")?;
        if check != hex(&Sha256::digest(body.as_bytes()).into()) {
            return Err("its checksum is wrong".to_owned());
        }
        let manifest =
            Self::fields(body).ok_or("its checksum is right, but its lines are not those of a manifest".to_owned())?;
        Ok(manifest)
    }

    fn fields(body: &str) -> Option<Self> {
        let mut lines = body.lines().skip(1);
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let branch = field("branch")?.parse().ok()?;
        let store = field("store")?.parse().ok()?;
        let state = match field("state")? {
            "prepared" => State::Prepared,
            "decided" => State::Decided,
            _ => return None,
        };
        let stage = field("stage")?.to_owned();
        let count: usize = field("operations")?.parse().ok()?;
        if !is_token(&stage) {
            return None;
        }
        let operations =
            lines.enumerate().map(|(place, line)| Operation::parse(place, line)).collect::<Option<Vec<_>>>()?;
        (operations.len() == count).then_some(Self { branch, store, state, stage, operations })
    }
}

impl Operation {
    fn parse(place: usize, line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        let (number, rest) = rest.split_once(' ')?;
        if number.parse() != Ok(place) {
            return None;
        }
        if word == "delete" {
            return Some(Self { path: RelPath::unescaped(rest)?, action: Action::Delete });
        }
        let (length, rest) = rest.split_once(' ')?;
        let (hash, path) = rest.split_once(' ')?;
        let content = Content { length: length.parse().ok()?, hash: unhex(hash)? };
        let action = match word {
            "create" => Action::Create(content),
            "replace" => Action::Replace(content),
            _ => return None,
        };
        Some(Self { path: RelPath::unescaped(path)?, action })
    }
}

/// Whether a text is what names in `stage/` begin with: it must not lead anywhere else.
pub(super) fn is_token(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    (hex(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn manifest(state: State) -> Manifest {
        let path = |text| RelPath::new(Path::new(text)).unwrap();
        Manifest {
            branch: "u1:00000000000000000000000001.1.00000001.7:log.0".parse().unwrap(),
            store: "store-1".parse().unwrap(),
            state,
            stage: "0123456789abcdefghjkmnpqrs".to_owned(),
            operations: vec![
                Operation { path: path("receipts/7.json"), action: Action::Create(Content::of(b"hello world")) },
                Operation { path: path("odd\nname 100%"), action: Action::Replace(Content::of(b"")) },
                Operation { path: path("receipts/6.json"), action: Action::Delete },
            ],
        }
    }

    #[test]
    fn a_manifest_reads_back_and_is_text_for_people() {
        for state in [State::Prepared, State::Decided] {
            let manifest = manifest(state);
            let text = manifest.encode();
            assert_eq!(Manifest::decode(text.as_bytes()), Ok(manifest));
            assert!(text.contains(
                "create 0 11 b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9 receipts/7.json\n"
            ));
            assert!(text.contains("\ndelete 2 receipts/6.json\n"));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let bytes = manifest(State::Prepared).encode().into_bytes();
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[place] ^= 1 << bit;
                assert!(Manifest::decode(&flipped).is_err(), "byte {place}, bit {bit}");
            }
            assert!(Manifest::decode(&bytes[..place]).is_err(), "cut at {place}");
        }
        let mut longer = bytes.clone();
        longer.push(b'\n');
        assert!(Manifest::decode(&longer).is_err());
    }

    #[test]
    fn a_later_version_is_named_as_such() {
        let text = manifest(State::Prepared).encode().replace("manifest 1", "manifest 2");
        assert!(Manifest::decode(text.as_bytes()).unwrap_err().contains("later version"));
    }

    #[test]
    fn lines_with_a_right_checksum_are_still_checked() {
        for (from, to) in [
            ("operations 3", "operations 2"),
            ("delete 2", "delete 1"),
            ("delete 2 receipts/6.json", "delete 2 ../6.json"),
            ("stage 0123456789abcdefghjkmnpqrs", "stage ../../../../../../../../etc"),
            ("state prepared", "state open"),
        ] {
            let text = manifest(State::Prepared).encode();
            let body = text[..text.find("sha256 ").unwrap()].replace(from, to);
            assert_ne!(body, text[..text.find("sha256 ").unwrap()]);
            let forged = format!("{body}sha256 {}\n", hex(&Sha256::digest(body.as_bytes()).into()));
            assert!(Manifest::decode(forged.as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn names_are_those_of_whole_ids_only() {
        let branch = manifest(State::Prepared).branch;
        for state in [State::Prepared, State::Decided] {
            assert_eq!(Manifest::parse_name(&Manifest::file_name(&branch, state)), Some((branch.clone(), state)),);
        }
        for wrong in ["", "x", "x.prepared", &format!("{branch}"), &format!("{branch}.prepared~")] {
            assert_eq!(Manifest::parse_name(wrong), None, "{wrong}");
        }
    }
}
