//! What the other files share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use unanimous_testing::client::Client;
use unanimous_testing::demo::Demo;

/// The binary that was built for these tests.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_unanimous"))
}

/// Runs it to its end.
pub(crate) fn unanimous<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Output {
    Command::new(binary()).args(arguments).env("RUST_BACKTRACE", "0").output().unwrap()
}

/// Exit code, standard output, standard error.
pub(crate) fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A demo that serves, on a data folder of its own.
pub(crate) struct Running {
    pub(crate) demo: Demo,
    pub(crate) client: Client,
    pub(crate) folder: TempDir,
}

impl Running {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let demo = Demo::start(binary(), &folder.path().join("data")).unwrap();
        let client = demo.ready().unwrap();
        Self { demo, client, folder }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// `demo check`, which must be clean: the numbers of orders and of receipts.
    pub(crate) fn clean_check(&self) -> (usize, usize) {
        clean(&self.demo.check().unwrap())
    }

    /// All files of the receipts' folder but the store's own.
    pub(crate) fn receipts(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.data().join("receipts")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != ".unanimous").collect();
        names.sort();
        names
    }

    /// Everything that is staged or prepared in the receipts' folder.
    pub(crate) fn unfinished(&self) -> Vec<PathBuf> {
        let own = self.data().join("receipts/.unanimous");
        let files = ["stage", "prepared"].into_iter().flat_map(|folder| std::fs::read_dir(own.join(folder)).unwrap());
        files.map(|entry| entry.unwrap().path()).collect()
    }
}

/// The numbers of a check that found nothing wrong.
pub(crate) fn clean(check: &Output) -> (usize, usize) {
    let (code, out, err) = told(check);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let numbers = out.strip_suffix(", mismatches 0, in doubt 0\n").unwrap_or_else(|| panic!("{out:?}"));
    let (orders, receipts) = numbers.split_once(", ").unwrap();
    let number = |text: &str, prefix| text.strip_prefix(prefix).unwrap().parse().unwrap();
    (number(orders, "orders "), number(receipts, "receipts "))
}
