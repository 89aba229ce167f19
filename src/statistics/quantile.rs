use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// The number that a standard normal variable stays below with probability `p`, 0 < p < 1.
#[must_use]
pub fn normal_quantile(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

/// The same of Student's t with `df` degrees of freedom, df > 0; `NaN` outside.
#[must_use]
pub fn t_quantile(p: f64, df: f64) -> f64 {
    StudentsT::new(0.0, 1.0, df).map_or(f64::NAN, |t| t.inverse_cdf(p))
}

#[cfg(test)]
mod tests {
    use crate::statistics::vectors::{close, group, real};

    #[test]
    fn stats_vectors_normal_quantile() {
        for case in group("normal_quantile") {
            close(super::normal_quantile(real(&case, "p")), real(&case, "z"), &case);
        }
    }

    #[test]
    fn stats_vectors_t_quantile() {
        for case in group("t_quantile") {
            close(super::t_quantile(real(&case, "p"), real(&case, "df")), real(&case, "t"), &case);
        }
    }
}
