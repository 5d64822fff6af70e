//! The folder itself: paths and permissions, its identity, and what is gone, damaged or not writable in it.

use super::*;

#[tokio::test]
async fn paths_that_lead_out_are_refused_and_nothing_is_lost() {
    let (root, files) = store().await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    fs::create_dir(root.path().join("real")).unwrap();
    fs::write(root.path().join("real/file"), "f").unwrap();
    symlink(outside.path(), root.path().join("out")).unwrap();
    symlink("real", root.path().join("in")).unwrap();
    symlink(outside.path().join("secret"), root.path().join("link")).unwrap();
    symlink("nowhere", root.path().join("dangling")).unwrap();
    let branch = branch(&files, 1).await;
    branch.create("kept", "k").await.unwrap();
    for (path, says) in [
        ("", "is empty"),
        ("../x", ".."),
        ("real/../../x", ".."),
        ("/etc/x", "absolute"),
        (".unanimous/identity", "own files"),
        ("out/secret", "symbolic link"),
        ("out/new", "symbolic link"),
        ("in/file", "symbolic link"),
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("real", "a folder"),
        ("real/file/x", "a file, not a folder"),
        ("kept/x", "same transaction"),
    ] {
        let errors = [
            branch.create(path, "x").await.unwrap_err(),
            branch.replace(path, "x").await.unwrap_err(),
            branch.delete(path).await.unwrap_err(),
        ];
        for error in errors {
            assert!(text(&error).contains(says), "{path}: {}", text(&error));
        }
        if path != "kept/x" {
            assert!(text(&branch.read(path).await.unwrap_err()).contains(says), "{path}");
        }
    }
    let long = "n".repeat(256);
    assert!(text(&branch.create(&long, "x").await.unwrap_err()).contains("255 bytes"));
    branch.prepare(&id(1)).await.unwrap();
    branch.commit().await.unwrap();
    assert_eq!(fs::read_to_string(root.path().join("kept")).unwrap(), "k");
    assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "s");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn odd_names_and_contents_survive_recovery() {
    let (root, files) = store().await;
    let long = "ü".repeat(127);
    let names = ["line\nbreak", "100%", "a b", "-rf", "%0A", "\u{1b}[31m", ".hidden", "deep/.unanimous", &long];
    let content: Vec<u8> = (0..300_000u32).map(|byte| (byte % 251) as u8).collect();
    let branch = branch(&files, 1).await;
    for name in names {
        branch.create(name, content.clone()).await.unwrap();
    }
    branch.prepare(&id(1)).await.unwrap();
    drop(branch);
    files.commit(&id(1)).await.unwrap();
    for name in names {
        assert_eq!(fs::read(root.path().join(name)).unwrap(), content, "{name:?}");
    }
    assert_clean(root.path());
}

#[tokio::test]
async fn a_replaced_file_keeps_its_permissions_and_a_new_one_gets_the_umask() {
    let (root, files) = store().await;
    for (name, mode) in [("secret", 0o600), ("script", 0o750)] {
        fs::write(root.path().join(name), "1").unwrap();
        fs::set_permissions(root.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(root.path().join("plain"), "1").unwrap();
    for (sequence, one_phase) in [(1, false), (2, true)] {
        let branch = branch(&files, sequence).await;
        for name in ["secret", "script", "new"] {
            branch.replace(name, format!("{sequence}")).await.unwrap();
        }
        if one_phase {
            branch.commit_one_phase(&id(sequence)).await.unwrap();
        } else {
            branch.prepare(&id(sequence)).await.unwrap();
            branch.commit().await.unwrap();
        }
        let mode = |name: &str| fs::metadata(root.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("secret"), mode("script"), mode("new")), (0o600, 0o750, mode("plain")));
    }
}

#[tokio::test]
async fn the_identity_is_made_once_and_stays() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("not/yet/there");
    let files = Files::new("files", &root);
    assert!(!root.exists(), "nothing is touched before it is used");
    let store = files.identity().await.unwrap();
    assert_eq!(files.identity().await.unwrap(), store);
    assert_eq!(Files::open("other name", &root).await.unwrap().identity().await.unwrap(), store);
    assert_eq!(
        fs::read_to_string(root.join(".unanimous/identity")).unwrap(),
        format!("unanimous files 1\nstore {store}\n")
    );
    let moved = parent.path().join("moved");
    fs::rename(&root, &moved).unwrap();
    assert_eq!(Files::open_existing("files", &moved).await.unwrap().identity().await.unwrap(), store);
}

#[tokio::test]
async fn many_that_open_a_new_folder_at_once_see_one_store() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("new");
    let opened = (0..8).map(|_| {
        let root = root.clone();
        tokio::spawn(async move { Files::open("files", root).await.unwrap().identity().await.unwrap() })
    });
    let mut ids = Vec::new();
    for opened in opened.collect::<Vec<_>>() {
        ids.push(opened.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert!(!root.join(".unanimous-new").exists());
}

#[tokio::test]
async fn a_folder_that_is_gone_or_replaced_is_down_not_empty() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("root");
    let files = Files::open("files", &root).await.unwrap();
    let first = branch(&files, 1).await;
    first.create("a", "1").await.unwrap();
    first.prepare(&id(1)).await.unwrap();
    let late = branch(&files, 2).await;
    late.create("b", "1").await.unwrap();

    fs::rename(&root, parent.path().join("away")).unwrap();
    down(files.identity().await, "does not exist");
    down(files.in_doubt().await, "does not exist");
    refused(files.commit(&id(1)).await, FailureKind::Refused, "does not exist");
    refused(files.rollback(&id(1)).await, FailureKind::Refused, "does not exist");
    refused(first.commit().await, FailureKind::Refused, "does not exist");

    // An empty mount point.
    fs::create_dir(&root).unwrap();
    down(files.identity().await, "not mounted");
    down(files.in_doubt().await, "not mounted");
    refused(late.prepare(&id(2)).await, FailureKind::Refused, "not mounted");
    assert!(matches!(Files::open_existing("files", &root).await, Err(FilesError::Gone { .. })));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "nothing was made");

    // Another disk.
    Files::open("files", &root).await.unwrap();
    down(files.identity().await, "is the store");
    down(files.in_doubt().await, "is the store");
    refused(files.rollback(&id(1)).await, FailureKind::Refused, "is the store");

    fs::remove_dir_all(&root).unwrap();
    fs::rename(parent.path().join("away"), &root).unwrap();
    assert_eq!(files.in_doubt().await.unwrap(), [id(1)]);
    first.commit().await.unwrap();
    assert_tree(&root, &[("a", "1")]);
}

#[tokio::test]
async fn parts_of_the_own_folder_that_are_gone_are_an_error() {
    for part in ["identity", "lock", "stage", "prepared"] {
        let (root, files) = store().await;
        let branch = branch(&files, 1).await;
        branch.create("a", "1").await.unwrap();
        let path = root.path().join(".unanimous").join(part);
        if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
        refused(branch.prepare(&id(1)).await, FailureKind::Refused, "restore it");
        if part != "lock" {
            down(files.in_doubt().await, "restore it");
            assert!(matches!(Files::open("files", root.path()).await, Err(FilesError::Gone { .. })), "{part}");
        }
        assert!(!path.exists(), "nothing was made up");
    }
    let (root, files) = store().await;
    fs::write(root.path().join(".unanimous/identity"), "unanimous files 2\nstore x\n").unwrap();
    down(files.identity().await, "later version");
}

#[tokio::test]
async fn a_damaged_manifest_stops_the_folder_loudly_but_not_other_branches_ends() {
    let (root, files) = store().await;
    for sequence in 1..=3 {
        let branch = branch(&files, sequence).await;
        branch.create(format!("{sequence}"), "x").await.unwrap();
        branch.prepare(&id(sequence)).await.unwrap();
    }
    let manifest = root.path().join(format!(".unanimous/prepared/{}.prepared", id(1)));
    let good = fs::read(&manifest).unwrap();
    let mut bad = good.clone();
    bad[150] ^= 4;
    fs::write(&manifest, &bad).unwrap();
    let name = format!("{}.prepared is damaged", id(1));
    down(files.in_doubt().await, &name);
    assert!(matches!(Files::open("files", root.path()).await, Err(FilesError::Damaged { .. })));
    refused(files.commit(&id(1)).await, FailureKind::Refused, &name);
    refused(files.rollback(&id(1)).await, FailureKind::Refused, &name);
    let next = branch(&files, 4).await;
    next.create("other", "x").await.unwrap();
    refused(next.prepare(&id(4)).await, FailureKind::Refused, &name);
    let next = branch(&files, 5).await;
    next.create("other", "x").await.unwrap();
    refused(next.commit_one_phase(&id(5)).await, FailureKind::Refused, &name);
    files.commit(&id(2)).await.unwrap();
    files.rollback(&id(3)).await.unwrap();
    assert_tree(root.path(), &[("2", "x")]);
    assert_eq!(entries(root.path(), "stage").len(), 1, "content that may be promised is not swept");

    fs::write(&manifest, &good).unwrap();
    assert_eq!(files.in_doubt().await.unwrap(), [id(1)]);
    // Renamed by somebody: what it says and what its name says differ.
    let renamed = root.path().join(format!(".unanimous/prepared/{}.decided", id(1)));
    fs::rename(&manifest, &renamed).unwrap();
    down(files.in_doubt().await, "somebody renamed it");
    fs::rename(&renamed, &manifest).unwrap();
    fs::write(root.path().join(".unanimous/prepared/notes.txt"), "x").unwrap();
    down(files.in_doubt().await, "notes.txt is damaged");
    fs::remove_file(root.path().join(".unanimous/prepared/notes.txt")).unwrap();
    files.commit(&id(1)).await.unwrap();
    assert_tree(root.path(), &[("1", "x"), ("2", "x")]);
    assert_clean(root.path());
}

#[tokio::test]
async fn a_manifest_copied_from_another_store_is_not_believed() {
    let ((root, files), (other_root, other)) = (store().await, store().await);
    let branch = branch(&other, 1).await;
    branch.create("a", "x").await.unwrap();
    branch.prepare(&id(1)).await.unwrap();
    let name = format!(".unanimous/prepared/{}.prepared", id(1));
    fs::copy(other_root.path().join(&name), root.path().join(&name)).unwrap();
    down(files.in_doubt().await, "copied from another store");
}

#[tokio::test]
async fn a_read_only_folder_is_a_no_before_the_promise() {
    let (root, files) = store().await;
    fs::create_dir(root.path().join("closed")).unwrap();
    fs::set_permissions(root.path().join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    let branch = branch(&files, 1).await;
    branch.create("closed/a", "x").await.unwrap();
    let result = branch.prepare(&id(1)).await;
    // Root may write everywhere: then the promise is kept instead.
    match fs::write(root.path().join("closed/probe"), "x") {
        Ok(()) => {
            result.unwrap();
            branch.commit().await.unwrap();
            assert_eq!(fs::read_to_string(root.path().join("closed/a")).unwrap(), "x");
        }
        Err(_) => {
            refused(result, FailureKind::Refused, "could not write into the folder");
            assert_tree(root.path(), &[]);
        }
    }
    assert_clean(root.path());
    fs::set_permissions(root.path().join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
}
