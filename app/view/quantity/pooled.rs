//! A series prepared for drawing: its entries ranked and pooled into few rows, kept up to date token by token, so that a layer of
//! 5,120 channels costs a frame no more than one of 64 heads.

use statescope_engine::protocol::{Probe, TokenId};

use super::cells::fingerprint;
use crate::store::Store;
use crate::widget::heatmap::{Cells, Row};

/// Rows drawn at most; more entries share one, which shows the entry of largest size.
pub const MAX_ROWS: usize = 64;

/// Row r covers entries `order[group(r)]`.
#[derive(Default)]
pub struct PooledSeries {
    key: Option<(Probe, u64, u64, usize)>,
    /// Tokens that the columns were computed for: a column depends on the text up to its token and on nothing else.
    ids: Vec<TokenId>,
    rows: Vec<Vec<f32>>,
    known: Vec<bool>,
    gaps: usize,
    version: u64,
    order: Vec<usize>,
}

impl PooledSeries {
    /// Brings the rows up to date with the store. `order` ranks the `entries` of the series; None keeps their order.
    pub fn update(&mut self, store: &Store, probe: &Probe, entries: usize, order: Option<&[usize]>) {
        let ranking = order.map_or(0, |order| fingerprint(order.iter().map(|i| *i as u64)));
        let key = (*probe, store.epoch, ranking, entries);
        if self.key != Some(key) {
            let version = self.version + 1;
            let order = order.map_or_else(|| (0..entries).collect(), <[usize]>::to_vec);
            *self = Self {
                key: Some(key),
                rows: vec![Vec::new(); entries.min(MAX_ROWS)],
                order,
                version,
                ..Self::default()
            };
        }
        let same = self.ids.iter().zip(&store.tokens).take_while(|(id, token)| **id == token.id).count();
        if same < self.ids.len() {
            self.truncate(same);
        }
        let series = store.series(probe);
        for t in 0..store.tokens.len() {
            if t < self.known.len() && self.known[t] {
                continue;
            }
            let row = series.and_then(|series| series.row(t)).filter(|row| row.len() >= entries);
            self.put(t, store.tokens[t].id, row);
        }
    }

    fn truncate(&mut self, keep: usize) {
        self.ids.truncate(keep);
        self.known.truncate(keep);
        self.rows.iter_mut().for_each(|row| row.truncate(keep));
        self.gaps = self.known.iter().filter(|known| !**known).count();
        self.version += 1;
    }

    fn put(&mut self, t: usize, id: TokenId, values: Option<&[f32]>) {
        let fresh = t == self.ids.len();
        if fresh {
            self.ids.push(id);
            self.known.push(false);
            self.rows.iter_mut().for_each(|row| row.push(0.0));
            self.gaps += 1;
            self.version += 1;
        }
        let Some(values) = values else { return };
        for r in 0..self.rows.len() {
            let pooled =
                self.group(r).iter().filter_map(|i| values.get(*i)).fold(0.0f32, |kept, value| {
                    if value.abs() > kept.abs() || !value.is_finite() { *value } else { kept }
                });
            self.rows[r][t] = pooled;
        }
        self.known[t] = true;
        self.gaps -= 1;
        self.version += 1;
    }

    /// The entries that row `r` stands for.
    pub fn group(&self, r: usize) -> &[usize] {
        let (rows, entries) = (self.rows.len().max(1), self.order.len());
        self.order.get(r * entries / rows..(r + 1) * entries / rows).unwrap_or_default()
    }

    /// The row that shows entry `entry`.
    pub fn row_of(&self, entry: usize) -> Option<usize> {
        let rank = self.order.iter().position(|e| *e == entry)?;
        (0..self.rows.len()).rev().find(|r| r * self.order.len() / self.rows.len() <= rank)
    }
}

impl Cells for PooledSeries {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn cols(&self) -> usize {
        self.ids.len()
    }

    fn value(&self, row: usize, col: usize) -> Option<f32> {
        if !*self.known.get(col)? {
            return None;
        }
        self.rows.get(row)?.get(col).copied()
    }

    fn generation(&self) -> u64 {
        self.version
    }

    fn row(&self, row: usize) -> Row<'_> {
        match self.rows.get(row) {
            Some(values) if self.gaps == 0 => Row::Slice(values),
            _ => Row::Each,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(entries: usize) -> PooledSeries {
        PooledSeries {
            rows: vec![Vec::new(); entries.min(MAX_ROWS)],
            order: (0..entries).rev().collect(),
            ..PooledSeries::default()
        }
    }

    #[test]
    fn groups_cover_every_entry_once() {
        for entries in [1, 5, 64, 65, 100, 512] {
            let series = pooled(entries);
            let all: Vec<usize> = (0..series.rows()).flat_map(|r| series.group(r).to_vec()).collect();
            assert_eq!(all, series.order);
            for entry in 0..entries {
                let row = series.row_of(entry).unwrap();
                assert!(series.group(row).contains(&entry));
            }
        }
    }

    #[test]
    fn the_largest_of_a_group_is_shown_and_gaps_stay_unknown() {
        let mut series = pooled(128);
        let mut values = vec![0.5f32; 128];
        values[127] = -3.0;
        series.put(0, 7, None);
        series.put(1, 8, Some(&values));
        assert_eq!(series.value(0, 0), None);
        assert_eq!(series.value(0, 1), Some(-3.0));
        assert_eq!(series.value(1, 1), Some(0.5));
        assert!(matches!(series.row(0), Row::Each));
        series.put(0, 7, Some(&values));
        assert!(matches!(series.row(0), Row::Slice([-3.0, -3.0])));
        series.truncate(1);
        assert_eq!(series.cols(), 1);
    }
}
