//! Sides that take turns, so that all meet the same noise, and what their rounds say together.
//!
//! Must not know what a side does.

use crate::row::{Beside, Row, Target};

/// The values of one side, a round each. Those of several sides belong together by their places.
#[derive(Clone, Debug)]
pub(crate) struct Rounds {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) values: Vec<f64>,
}

impl Rounds {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self { name: name.into(), unit, values: Vec::new() }
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// By how much it is more than another side, round by round.
    ///
    /// # Panics
    ///
    /// When they don't have the same number of rounds.
    pub(crate) fn less(&self, other: &Self, name: impl Into<String>) -> Self {
        assert_eq!(self.values.len(), other.values.len(), "{} and {} took turns", self.name, other.name);
        let values = self.values.iter().zip(&other.values).map(|(value, other)| value - other).collect();
        Self { name: name.into(), unit: self.unit, values }
    }

    /// By itself.
    pub(crate) fn row(&self) -> Row {
        Row {
            name: self.name.clone(),
            value: median(&self.values),
            unit: self.unit,
            spread: spread(&self.values),
            beside: None,
            target: None,
        }
    }

    /// Beside another side's, round by round.
    ///
    /// # Panics
    ///
    /// When they don't have the same number of rounds.
    pub(crate) fn beside(&self, yardstick: &Self, target: Option<Target>) -> Row {
        assert_eq!(self.values.len(), yardstick.values.len(), "{} and {} took turns", self.name, yardstick.name);
        let ratios: Vec<f64> = self.values.iter().zip(&yardstick.values).map(|(value, other)| value / other).collect();
        let beside = Beside { yardstick: yardstick.name.clone(), ratio: median(&ratios), spread: spread(&ratios) };
        Row { beside: Some(beside), target, ..self.row() }
    }
}

/// A side: where its values go, and what gives the next one.
pub(crate) type Side<'s, E> = (&'s mut Rounds, &'s mut dyn FnMut() -> Result<f64, E>);

/// Runs each side once in each round, the first of a round in turn, after one round that warms up.
///
/// # Errors
///
/// The first error of a side.
pub(crate) fn alternate<E>(rounds: usize, sides: &mut [Side<'_, E>]) -> Result<(), E> {
    let count = sides.len();
    for round in 0..=rounds {
        for turn in 0..count {
            let (side, measure) = &mut sides[(round + turn) % count];
            let value = measure()?;
            if round > 0 {
                side.push(value);
            }
        }
    }
    Ok(())
}

/// # Panics
///
/// When there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    part(values, 50)
}

/// The tenth and the ninetieth hundredth.
fn spread(values: &[f64]) -> [f64; 2] {
    [part(values, 10), part(values, 90)]
}

/// The value below which so many hundredths are; the nearest one that was measured.
pub(crate) fn part(values: &[f64], hundredths: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * hundredths / 100]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_the_same_round() {
        let side = |values: &[f64]| Rounds { name: "x".into(), unit: "ns", values: values.to_vec() };
        // A slow machine doubles both.
        let row = side(&[10.0, 20.0, 40.0]).beside(&side(&[5.0, 10.0, 20.0]), Some(Target::RatioAtMost(2.0)));
        let beside = row.beside.as_ref().unwrap();
        assert_eq!((row.value, beside.ratio, beside.spread), (20.0, 2.0, [2.0, 2.0]));
        assert_eq!(row.reached(), Some(true));
    }

    #[test]
    fn each_side_is_the_first_in_turn() {
        let order = std::cell::RefCell::new(String::new());
        let (mut a, mut b) = (Rounds::new("a", "ns"), Rounds::new("b", "ns"));
        let mut say = |what: char| {
            order.borrow_mut().push(what);
            Ok::<_, ()>(f64::from(u32::from(what)))
        };
        let say = std::cell::RefCell::new(&mut say);
        let (mut one, mut two) = (|| (say.borrow_mut())('a'), || (say.borrow_mut())('b'));
        alternate(2, &mut [(&mut a, &mut one), (&mut b, &mut two)]).unwrap();
        assert_eq!(*order.borrow(), "abbaab");
        assert_eq!((a.values, b.values), (vec![97.0; 2], vec![98.0; 2]));
    }
}
