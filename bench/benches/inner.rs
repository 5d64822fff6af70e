//! The inner loops, for developers: `cargo bench --manifest-path bench/Cargo.toml`. What counts is `cargo xtask bench`, where sides
//! take turns.

use divan::Bencher;
use unanimous_bench::{Answering, Inner, request};

/// Of a sample, so that the runtime's entry doesn't count.
const TURNS: u32 = 100;

fn main() {
    divan::main();
}

#[divan::bench(args = [0, 1, 2, 4, 8, 16])]
fn branches(bencher: Bencher<'_, '_>, branches: usize) {
    let inner = Inner::new();
    bencher.counter(divan::counter::ItemsCount::new(TURNS)).bench_local(|| inner.transactions(TURNS, branches));
}

#[divan::bench]
fn task(bencher: Bencher<'_, '_>) {
    let inner = Inner::new();
    bencher.counter(divan::counter::ItemsCount::new(TURNS)).bench_local(|| inner.tasks(TURNS));
}

mod requests {
    use super::*;

    fn bench<S: Answering>(bencher: Bencher<'_, '_>, service: impl FnOnce(&Inner) -> S) {
        let inner = Inner::new();
        let mut service = service(&inner);
        bencher
            .counter(divan::counter::ItemsCount::new(TURNS))
            .bench_local(|| inner.requests(TURNS, request, &mut service));
    }

    #[divan::bench]
    fn bare(bencher: Bencher<'_, '_>) {
        bench(bencher, Inner::bare);
    }

    #[divan::bench]
    fn joins_nothing(bencher: Bencher<'_, '_>) {
        bench(bencher, Inner::layered);
    }

    #[divan::bench]
    fn joins_two(bencher: Bencher<'_, '_>) {
        bench(bencher, Inner::layered_with_two);
    }

    #[divan::bench]
    fn two_by_hand(bencher: Bencher<'_, '_>) {
        bench(bencher, Inner::two_by_hand);
    }
}
