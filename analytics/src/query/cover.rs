//! Which rows answer a range: as few as there are, no finer than needed, none that retention has taken.

use std::ops::Range;

use crate::store::{Segment, TIERS_S};

/// Rows that cover a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Where the rows lie, in order of time, without gap or overlap.
    pub segments: Vec<Segment>,
    /// The range that they cover: the one asked for, widened to whole buckets where finer ones are gone.
    pub range: Range<i64>,
    /// The bucket that the ends of the range were rounded to, in seconds.
    pub resolution_s: i64,
}

/// Covers `range` with buckets that divide `step_s` (any, when `None`) and start at or after the floor of their tier.
///
/// # Errors
/// When the step asks for buckets that are gone: the shortest step that can be answered.
pub fn cover(range: Range<i64>, step_s: Option<i64>, floors: &[i64; 4]) -> Result<Cover, i64> {
    let fits = |tier: i64| step_s.is_none_or(|step| step % tier == 0);
    let kept = |tier: usize, start: i64| floors[tier] <= start;
    // The finest tier that still has the bucket which holds this second.
    let finest =
        |second: i64| (0..TIERS_S.len()).find(|tier| kept(*tier, down(second, TIERS_S[*tier])));
    // Where everything is gone the coarsest tier says so by having no rows.
    let left = TIERS_S[finest(range.start).unwrap_or(TIERS_S.len() - 1)];
    let right = TIERS_S[finest(range.end - 1).unwrap_or(TIERS_S.len() - 1)];
    if !fits(left) {
        return Err(left);
    }
    let start = down(range.start, left);
    let mut end = up(range.end, right);
    let mut segments: Vec<Segment> = Vec::new();
    let mut at = start;
    while at < end {
        let usable = |tier: &usize| {
            let length = TIERS_S[*tier];
            fits(length) && at % length == 0 && kept(*tier, at)
        };
        let inside = |tier: &usize| at + TIERS_S[*tier] <= end;
        let longest = (0..TIERS_S.len()).rev().filter(usable).find(inside);
        // None fits when even the finest bucket kept reaches past the end: the range grows to it.
        let tier = longest
            .or_else(|| (0..TIERS_S.len()).find(usable))
            .unwrap_or(TIERS_S.len() - 1);
        let next = down(at, TIERS_S[tier]) + TIERS_S[tier];
        end = end.max(next);
        match segments.last_mut() {
            Some(last) if last.tier_s == TIERS_S[tier] => last.range.end = next,
            _ => segments.push(Segment {
                tier_s: TIERS_S[tier],
                range: at..next,
            }),
        }
        at = next;
    }
    Ok(Cover {
        segments,
        range: start..end,
        resolution_s: left.max(right),
    })
}

fn down(second: i64, length: i64) -> i64 {
    second.div_euclid(length) * length
}

fn up(second: i64, length: i64) -> i64 {
    down(second + length - 1, length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FOREVER: [i64; 4] = [i64::MIN; 4];
    const DAY: i64 = 86_400;

    #[test]
    fn a_whole_day_is_one_row_per_key() {
        let covered = cover(DAY..2 * DAY, None, &FOREVER).expect("kept");
        assert_eq!(
            covered.segments,
            [Segment {
                tier_s: DAY,
                range: DAY..2 * DAY
            }]
        );
    }

    #[test]
    fn ragged_ends_are_exact_while_seconds_are_kept() {
        let covered = cover(DAY - 61..2 * DAY + 3_661, None, &FOREVER).expect("kept");
        let tiers: Vec<_> = covered
            .segments
            .iter()
            .map(|segment| segment.tier_s)
            .collect();
        assert_eq!(tiers, [1, 60, DAY, 3_600, 60, 1]);
        assert_eq!(
            (covered.range, covered.resolution_s),
            (DAY - 61..2 * DAY + 3_661, 1)
        );
    }

    #[test]
    fn old_ends_are_widened_and_say_so() {
        let floors = [10 * DAY, 5 * DAY, i64::MIN, i64::MIN];
        let covered = cover(DAY + 5..DAY + 10, None, &floors).expect("widened");
        assert_eq!(
            (covered.range, covered.resolution_s),
            (DAY..DAY + 3_600, 3_600)
        );
        assert_eq!(cover(DAY..2 * DAY, Some(60), &floors), Err(3_600));
        assert!(cover(DAY..2 * DAY, Some(7_200), &floors).is_ok());
    }

    proptest! {
        #[test]
        fn segments_tile_the_range(
            from in 0i64..20 * DAY, length in 1i64..5 * DAY, kept in 0i64..20 * DAY, minutes in 0i64..20 * DAY,
            step in prop::sample::select(vec![None, Some(1), Some(60), Some(90), Some(3_600), Some(DAY)]),
        ) {
            let floors = [kept, kept - minutes, i64::MIN, i64::MIN];
            let Ok(covered) = cover(from..from + length, step, &floors) else { return Ok(()) };
            let mut at = covered.range.start;
            for segment in &covered.segments {
                prop_assert_eq!(segment.range.start, at);
                prop_assert!(segment.range.start % segment.tier_s == 0 && segment.range.end % segment.tier_s == 0);
                prop_assert!(step.is_none_or(|step| step % segment.tier_s == 0));
                let tier = TIERS_S.iter().position(|tier| *tier == segment.tier_s).expect("a tier");
                prop_assert!(floors[tier] <= segment.range.start);
                at = segment.range.end;
            }
            prop_assert_eq!(at, covered.range.end);
            prop_assert!(covered.range.start <= from && covered.range.end >= from + length);
            prop_assert!(from - covered.range.start < covered.resolution_s.max(1));
        }
    }
}
