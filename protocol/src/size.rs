//! Sizes as people write them.

/// Parse `20GiB`, `500MB`, `1TiB` or a number of bytes.
///
/// # Errors
/// Says what is accepted.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return Err("want a size such as 20GiB, 500MB or 1TiB".into()),
    };
    let number: u64 = number.parse().map_err(|_| "want a size such as 20GiB, 500MB or 1TiB".to_string())?;
    number.checked_mul(factor).ok_or_else(|| "larger than any disk".into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes() {
        for (text, want) in [("20GiB", 20 << 30), ("500MB", 500_000_000), ("1T", 1 << 40), ("4096", 4096)] {
            assert_eq!(super::parse(text), Ok(want));
        }
        for bad in ["", "GiB", "-1", "1.5GiB", "20 parsecs", "99999999999TiB"] {
            assert!(super::parse(bad).is_err(), "{bad}");
        }
    }
}
