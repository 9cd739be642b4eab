//! The labels of one series while rules change them.

use skald_model::LabelBytes;

/// A text that was there, or one that a rule wrote.
#[derive(Debug, Clone, Copy)]
enum Text<'s> {
    Given(&'s str),
    Made { start: usize, end: usize },
}

impl<'s> Text<'s> {
    fn get<'m>(self, made: &'m str) -> &'m str
    where
        's: 'm,
    {
        match self {
            Self::Given(text) => text,
            Self::Made { start, end } => &made[start..end],
        }
    }
}

type Pair<'s> = (Text<'s>, Text<'s>);

/// Labels with unique names and no empty values: first those that were received and are unchanged, by name, then those that
/// were set, in the order in which they came. That order is Prometheus'; `labelmap` shows it.
#[derive(Debug, Default)]
pub(super) struct Working<'s> {
    labels: Vec<Pair<'s>>,
    /// How many of them are as they were received.
    received: usize,
    /// Labels as they were before a rule that walks them.
    before: Vec<Pair<'s>>,
    /// What rules wrote.
    made: String,
    original: Option<LabelBytes<'s>>,
}

/// An empty list of labels of another series, in the same memory.
fn recycle<'t>(mut labels: Vec<Pair<'_>>) -> Vec<Pair<'t>> {
    labels.clear();
    // Nothing is mapped; the standard library keeps the allocation.
    labels.into_iter().map(|_| (Text::Given(""), Text::Given(""))).collect()
}

impl<'s> Working<'s> {
    /// Takes up a series in place of the last one.
    pub(super) fn load<'t>(mut self, series: LabelBytes<'t>) -> Working<'t> {
        self.made.clear();
        let mut labels = recycle(self.labels);
        labels.extend(series.iter().map(|(name, value)| (Text::Given(name), Text::Given(value))));
        let received = labels.len();
        Working { labels, received, before: recycle(self.before), made: self.made, original: Some(series) }
    }

    /// Lets go of the series; the memory is for the next one.
    pub(super) fn unload(self) -> Working<'static> {
        Working {
            labels: recycle(self.labels),
            received: 0,
            before: recycle(self.before),
            made: self.made,
            original: None,
        }
    }

    /// How many labels there are.
    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }

    /// How many bytes rules wrote.
    pub(super) fn made_bytes(&self) -> usize {
        self.made.len()
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.labels.iter().position(|(known, _)| known.get(&self.made) == name)
    }

    /// The value of a label; empty without one.
    pub(super) fn get(&self, name: &str) -> &str {
        self.position(name).map_or("", |at| self.labels[at].1.get(&self.made))
    }

    /// Takes a label off.
    pub(super) fn remove(&mut self, name: &str) {
        if let Some(at) = self.position(name) {
            self.remove_at(at);
        }
    }

    fn remove_at(&mut self, at: usize) {
        self.labels.remove(at);
        self.received -= usize::from(at < self.received);
    }

    fn set(&mut self, name: Text<'s>, value: Text<'s>) {
        let position = self.position(name.get(&self.made));
        if value.get(&self.made).is_empty() {
            if let Some(at) = position {
                self.remove_at(at);
            }
            return;
        }
        match position {
            Some(at) if at >= self.received => self.labels[at].1 = value,
            Some(at) => {
                self.remove_at(at);
                self.labels.push((name, value));
            }
            None => self.labels.push((name, value)),
        }
    }

    /// Sets a label to a text that lives as long as the series.
    pub(super) fn set_given(&mut self, name: &'s str, value: &'s str) {
        self.set(Text::Given(name), Text::Given(value));
    }

    /// Sets the label `name` to what `write` appends.
    pub(super) fn set_made(&mut self, name: &'s str, write: impl FnOnce(&mut String)) {
        let start = self.made.len();
        write(&mut self.made);
        self.set(Text::Given(name), Text::Made { start, end: self.made.len() });
    }

    /// Sets a label of which name and value were both written by a rule.
    pub(super) fn set_both(&mut self, name: &str, value: &str) {
        let start = self.made.len();
        self.made.push_str(name);
        let middle = self.made.len();
        self.made.push_str(value);
        self.set(Text::Made { start, end: middle }, Text::Made { start: middle, end: self.made.len() });
    }

    /// Keeps the labels whose names `keep` says yes to.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let (mut at, received, mut gone) = (0, self.received, 0);
        let made = &self.made;
        self.labels.retain(|(name, _)| {
            let kept = keep(name.get(made));
            gone += usize::from(!kept && at < received);
            at += 1;
            kept
        });
        self.received -= gone;
    }

    /// Copies labels, each to the name that `map` appends if it says yes. Which ones there are is what was before; later ones
    /// win.
    pub(super) fn copy_all(&mut self, mut map: impl FnMut(&str, &mut String) -> bool) {
        let mut before = std::mem::take(&mut self.before);
        before.clone_from(&self.labels);
        let mut mapped = String::new();
        for (name, value) in &before {
            mapped.clear();
            if map(name.get(&self.made), &mut mapped) {
                let start = self.made.len();
                self.made.push_str(&mapped);
                self.set(Text::Made { start, end: self.made.len() }, *value);
            }
        }
        self.before = before;
    }

    /// Appends the labels as they are now, unless they are what was received; false when that would take more than `most`
    /// bytes.
    pub(super) fn encode(&mut self, most: usize, out: &mut Vec<u8>) -> bool {
        let received = self.original.map_or(0, |original| original.iter().count());
        if self.labels.len() == received && self.received == received {
            return true;
        }
        let made = &self.made;
        // More than the bytes around a label's texts.
        let bytes = self.labels.iter().map(|(n, v)| n.get(made).len() + v.get(made).len() + 16);
        if bytes.sum::<usize>() > most {
            return false;
        }
        self.labels.sort_unstable_by(|a, b| a.0.get(made).cmp(b.0.get(made)));
        for (name, value) in &self.labels {
            LabelBytes::encode(out, name.get(made), value.get(made));
        }
        if self.original.is_some_and(|original| original.as_bytes() == &out[..]) {
            out.clear();
        }
        true
    }
}
