//! Reads single figures off `/metrics`.

/// What the series of this name with these labels add up to; none where there is no such series. Labels are given as
/// they stand there, as in `breaker="publish"`; none stand for all.
pub fn sum(text: &str, name: &str, labels: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (found, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let value = rest.split(' ').next().filter(|_| found.contains(labels));
        value?.parse::<f64>().ok()
    });
    values.reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_that_of_its_series_alone() {
        let text = "# TYPE queue gauge\nqueue 3\nqueue_limit 50000\nopen{breaker=\"a\"} 1\nopen{breaker=\"b\"} 2\n\
                    sent_total{door=\"http\"} 7 # {trace_id=\"1\"} 1 1\n# EOF\n";
        assert_eq!(sum(text, "queue", ""), Some(3.0));
        assert_eq!(sum(text, "open", "breaker=\"b\""), Some(2.0));
        assert_eq!(sum(text, "open", ""), Some(3.0));
        assert_eq!(sum(text, "sent_total", ""), Some(7.0));
        assert_eq!(sum(text, "closed", ""), None);
    }
}
