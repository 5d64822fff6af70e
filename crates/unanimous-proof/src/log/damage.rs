//! The hundred records cut at every byte, with every bit flipped, with sectors lost one by one and in pairs, and damaged at random.
//!
//! Must not know what must come of it: the image does.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use unanimous::log::{DamageKind, OpenError};
use unanimous_testing::rng::Rng;

use super::image::{Image, open_files, segments};
use super::in_two;
use crate::{Found, Options, say};

pub(super) fn run(options: &Options) -> Result<Found, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let image = Image::write(folder.path(), options.seed)?;
    let mut found = cuts(&image, folder.path())?;
    let length = image.bytes.len();
    say(&format!("a log of {} records: cut at each of {length} bytes in real files", image.records));

    let (last, _, end) = image.last();
    // Where no frame is, quick tries one bit of a byte.
    let bits: Vec<usize> =
        (0..length * 8).filter(|bit| !options.quick || bit / 8 < end || bit % 8 == bit / 8 % 8).collect();
    add(
        &mut found,
        in_two(&bits, |&bit| {
            let mut damaged = image.bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let again = (last * 8..end * 8).contains(&bit) || bit % 64 == 0;
            Ok(named(image.try_with(&damaged, again)?, &format!("bit {bit} flipped")))
        })?,
    );
    say(&format!("{} flipped bits", bits.len()));

    for size in [64, 512] {
        let sectors = length / size;
        let pairs: Vec<(usize, usize)> = (0..sectors)
            .flat_map(|one| (one..sectors).map(move |other| (one, other)))
            .filter(|(one, other)| !options.quick || one == other || (size == 512 && (one + other) % 5 == 0))
            .collect();
        add(
            &mut found,
            in_two(&pairs, |&(one, other)| {
                let mut wrong = Vec::new();
                for content in [Content::Zeros, Content::Noise] {
                    let mut damaged = image.bytes.clone();
                    let mut random = Rng::new(options.seed ^ (one * sectors + other) as u64);
                    for sector in [one, other] {
                        content.put(&mut damaged[sector * size..(sector + 1) * size], &mut random);
                    }
                    let name = format!("sectors {one} and {other} of {size} bytes lost, {content:?}");
                    wrong.extend(named(image.try_with(&damaged, false)?, &name));
                }
                Ok(wrong)
            })?,
        );
        say(&format!("{} lost sectors of {size} bytes, alone and in pairs", pairs.len()));
    }

    let rounds: Vec<u64> = (0..if options.quick { 4_000 } else { 1_500_000 }).collect();
    let hidden = AtomicU64::new(0);
    add(
        &mut found,
        in_two(&rounds, |&round| {
            let damaged = at_random(&image, options.seed.wrapping_mul(0x1_0000_0000).wrapping_add(round));
            if image.lost(&image.expected(&damaged)) > 0 {
                hidden.fetch_add(1, Ordering::Relaxed);
            }
            Ok(named(
                image.try_with(&damaged, round % 16 == 0)?,
                &format!("random damage {round}, seed {}", options.seed),
            ))
        })?,
    );
    let hidden = hidden.into_inner();
    say(&format!(
        "{} times damaged at random; {hidden} of them hit both copies of the last frames, which is told as a tail",
        rounds.len()
    ));
    Ok(found)
}

fn add(found: &mut Found, more: Found) {
    found.cases += more.cases;
    found.violations.extend(more.violations);
}

fn named(wrong: Vec<String>, what: &str) -> Vec<String> {
    wrong.into_iter().map(|wrong| format!("{what}: {wrong}")).collect()
}

/// The file is cut, in the real file system: never opened, never changed by the try.
fn cuts(image: &Image, folder: &Path) -> Result<Found, String> {
    let path = folder.to_owned();
    let file = path.join(&image.name);
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let cut = OpenOptions::new().write(true).open(&file).map_err(failed)?;
    let names = segments(&path)?;
    let mut found = Found::default();
    for length in (0..image.bytes.len()).rev() {
        found.cases += 1;
        cut.set_len(length as u64).map_err(failed)?;
        let wrong = match open_files(&path)? {
            Ok(_) => "it opens".to_owned(),
            Err(OpenError::Damaged { damage, .. }) if damage.iter().any(|one| one.kind == DamageKind::Cut) => continue,
            Err(OpenError::Header { .. }) if length < 128 => continue,
            Err(other) => format!("it is refused as {other}"),
        };
        found.violations.push(format!("cut at byte {length}: {wrong}"));
        break;
    }
    let left = std::fs::read(&file).map_err(failed)?;
    if !left.is_empty() || segments(&path)? != names {
        found.violations.push("a refused opening has changed the folder".into());
    }
    std::fs::write(&file, &image.bytes).map_err(failed)?;
    found.cases += 1;
    match open_files(&path)? {
        Ok(log) if log.opened().tail.is_none() && log.opened().single_copy.is_none() => {}
        other => found.violations.push(format!("whole again, it is not clean: {other:?}")),
    }
    Ok(found)
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Zeros,
    Noise,
}

impl Content {
    fn put(self, bytes: &mut [u8], random: &mut Rng) {
        match self {
            Content::Zeros => bytes.fill(0),
            Content::Noise => bytes.iter_mut().for_each(|byte| *byte = random.next() as u8),
        }
    }
}

/// One to five damages of any kind, half of them near the end of what is written, where the hard cases are.
fn at_random(image: &Image, seed: u64) -> Vec<u8> {
    let mut random = Rng::new(seed);
    let mut damaged = image.bytes.clone();
    let length = damaged.len();
    let (last, _, end) = image.last();
    for _ in 0..random.between(1, 5) {
        let (low, high) = if random.chance(1, 2) { (last.saturating_sub(200), end) } else { (0, length - 1) };
        let from = random.between(low as u64, high as u64) as usize;
        let to = (from + random.between(1, 400) as usize).min(length);
        match random.between(0, 4) {
            0 => Content::Zeros.put(&mut damaged[from..to], &mut random),
            1 => Content::Noise.put(&mut damaged[from..to], &mut random),
            2 => damaged.copy_within(from..to, random.between(0, (length - (to - from)) as u64) as usize),
            3 => damaged[from] ^= 1 << random.between(0, 7),
            // A write that ended here.
            _ => damaged[from.max(last)..].fill(0),
        }
    }
    damaged
}
