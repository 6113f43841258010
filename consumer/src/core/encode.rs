//! Writes a closed batch as the bytes of a `DeltaBatch`, straight from the aggregator's memory.
//!
//! A test holds it against the generated code: what is written here reads back there and encodes
//! to the same bytes. Default values are left out, as proto3 asks.

use bytes::Bytes;
use streamgauge_chain::{Outcomes, Range, TraceBytes};

use super::aggregate::{Aggregator, Cell, UserPage};

/// What a batch says of itself, beside its aggregates.
#[derive(Clone, Debug)]
pub struct Summary<'a> {
    /// The source offsets that it covers.
    pub range: Range,
    /// How they ended.
    pub outcomes: Outcomes,
    /// Largest log time seen, microseconds.
    pub log_time_us: i64,
    /// Event-time watermark, microseconds.
    pub watermark_us: i64,
    /// Contexts of the sampled events.
    pub traces: &'a [TraceBytes],
    /// Who writes.
    pub writer: &'a str,
}

/// The encoded batch.
pub fn batch(summary: &Summary<'_>, aggregates: &Aggregator) -> Bytes {
    let mut out = Writer::with_capacity(aggregates.encoded_bytes_max());
    let mut scratch = Scratch::default();
    out.int(1, summary.range.from());
    out.int(2, summary.range.to());
    scratch.inner.clear();
    outcomes(&mut scratch.inner, &summary.outcomes);
    out.bytes(3, &scratch.inner.0);
    out.int(4, summary.log_time_us);
    out.int(5, summary.watermark_us);
    out.int(6, aggregates.oldest_received_us);
    aggregates
        .strings
        .iter()
        .for_each(|text| out.bytes(7, text.as_bytes()));
    for (plan, cells) in aggregates.plan().series.iter().zip(&aggregates.cells) {
        if !cells.is_empty() {
            scratch.series(&plan.name, plan.dimensions.len(), cells);
            out.bytes(8, &scratch.outer.0);
        }
    }
    for page in &aggregates.user_pages {
        scratch.user_page(page);
        out.bytes(9, &scratch.inner.0);
    }
    summary.traces.iter().for_each(|trace| out.bytes(10, trace));
    if !summary.writer.is_empty() {
        out.bytes(11, summary.writer.as_bytes());
    }
    for (id, count) in aggregates
        .types
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
    {
        scratch.inner.clear();
        scratch.inner.uint(1, id as u64);
        scratch.inner.uint(2, *count);
        out.bytes(12, &scratch.inner.0);
    }
    Bytes::from(out.0)
}

fn outcomes(out: &mut Writer, outcomes: &Outcomes) {
    for (field, (_, count)) in (1..).zip(outcomes.terms()) {
        out.uint(field, count);
    }
}

/// Buffers for messages within messages, whose length stands before them.
#[derive(Default)]
struct Scratch {
    outer: Writer,
    inner: Writer,
    packed: Writer,
}

impl Scratch {
    fn series(&mut self, name: &str, dimensions: usize, cells: &[Cell]) {
        self.outer.clear();
        self.outer.bytes(1, name.as_bytes());
        for cell in cells {
            self.cell(cell, dimensions);
            self.outer.bytes(2, &self.inner.0);
        }
    }

    fn cell(&mut self, cell: &Cell, dimensions: usize) {
        let out = &mut self.inner;
        out.clear();
        out.int(1, cell.bucket_s);
        if dimensions > 0 {
            self.packed.clear();
            cell.key[..dimensions]
                .iter()
                .for_each(|id| self.packed.varint(u64::from(*id)));
            out.bytes(2, &self.packed.0);
        }
        out.uint(3, cell.count);
        if cell.value_count > 0 {
            out.uint(4, cell.value_count);
            out.double(5, cell.sum);
            out.double(6, cell.min);
            out.double(7, cell.max);
        }
        if let Some(users) = &cell.users {
            out.bytes(8, &users.to_bytes());
        }
        if let Some(quantiles) = &cell.quantiles {
            out.bytes(9, &quantiles.to_bytes());
        }
    }

    fn user_page(&mut self, page: &UserPage) {
        let out = &mut self.inner;
        out.clear();
        out.uint(1, u64::from(page.user_id));
        out.uint(2, u64::from(page.page_url));
        out.uint(3, u64::from(page.event_type));
        out.uint(4, page.count);
        out.int(5, page.last_us);
    }
}

/// Protobuf's wire format, as far as a batch needs it.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn uint(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.key(field, 0);
            self.varint(value);
        }
    }

    fn int(&mut self, field: u64, value: i64) {
        self.uint(field, value.cast_unsigned());
    }

    fn double(&mut self, field: u64, value: f64) {
        if value != 0.0 {
            self.key(field, 1);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}
