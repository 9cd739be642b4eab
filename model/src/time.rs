//! Timestamps and the two kinds of time range.

/// Milliseconds since the Unix epoch, UTC; may be negative.
pub type TimestampMs = i64;

/// A block's time range: half-open, `min <= t < max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRange {
    /// First timestamp inside the range.
    pub min: TimestampMs,
    /// First timestamp after the range.
    pub max: TimestampMs,
}

impl BlockRange {
    /// Whether any instant of `query` lies inside this block.
    pub fn overlaps(&self, query: QueryRange) -> bool {
        self.min <= query.max && query.min < self.max
    }
}

/// A query's time range: closed, `min <= t <= max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueryRange {
    /// First timestamp asked for.
    pub min: TimestampMs,
    /// Last timestamp asked for.
    pub max: TimestampMs,
}

impl QueryRange {
    /// Every representable instant.
    pub const ALL: QueryRange = QueryRange { min: i64::MIN, max: i64::MAX };

    /// Whether `t` lies inside.
    pub fn contains(&self, t: TimestampMs) -> bool {
        self.min <= t && t <= self.max
    }

    /// Whether no instant lies inside.
    pub fn is_empty(&self) -> bool {
        self.min > self.max
    }

    /// The instants both ranges hold; empty (`min > max`) when they do not meet.
    pub fn intersect(&self, other: QueryRange) -> QueryRange {
        QueryRange { min: self.min.max(other.min), max: self.max.min(other.max) }
    }
}
