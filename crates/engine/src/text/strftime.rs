//! `strftime` for templates, on a time that the caller passes: there is no clock down here.

use std::fmt::Write;

/// A point of time as a calendar and a clock on the wall show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CivilTime {
    /// Year, such as 2026.
    pub year: i32,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, 1 to 31.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Second, 0 to 60.
    pub second: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl CivilTime {
    /// From seconds since 1970-01-01 00:00 UTC, in UTC. Source: Hinnant, "chrono-compatible low-level date
    /// algorithms".
    pub fn from_unix(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self {
            year: (year_of_era + era * 400 + i64::from(month <= 2)) as i32,
            month: month as u8,
            day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// Days from 1 January, 0 to 365.
    fn day_of_year(&self) -> usize {
        const BEFORE: [usize; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        let month = usize::from(self.month.clamp(1, 12)) - 1;
        BEFORE[month] + usize::from(self.day.max(1)) - 1 + usize::from(leap && month > 1)
    }

    /// 0 is Sunday.
    fn weekday(&self) -> usize {
        let past = i64::from(self.year) - 1;
        let leaps = past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400);
        (past * 365 + leaps + self.day_of_year() as i64 + 1).rem_euclid(7) as usize
    }

    /// Formats as C's `strftime` does in the C locale. `None` for a directive that templates do not use.
    pub fn format(&self, format: &str) -> Option<String> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next()?;
            let padded = directive != '-';
            if !padded {
                directive = chars.next()?;
            }
            self.directive(directive, padded, &mut out)?;
        }
        Some(out)
    }

    fn directive(&self, directive: char, padded: bool, out: &mut String) -> Option<()> {
        let hour12 = (self.hour + 11) % 12 + 1;
        let month = MONTHS[usize::from(self.month.clamp(1, 12)) - 1];
        let day = DAYS[self.weekday()];
        let mut number = |value: i64, width: usize| {
            let width = if padded { width } else { 0 };
            write!(out, "{value:0width$}").ok()
        };
        match directive {
            'Y' => return number(self.year.into(), 4),
            'y' => return number((self.year % 100).into(), 2),
            'm' => return number(self.month.into(), 2),
            'd' => return number(self.day.into(), 2),
            'H' => return number(self.hour.into(), 2),
            'I' => return number(hour12.into(), 2),
            'M' => return number(self.minute.into(), 2),
            'S' => return number(self.second.into(), 2),
            'j' => return number(self.day_of_year() as i64 + 1, 3),
            'e' => write!(out, "{:2}", self.day).ok()?,
            'B' => out.push_str(month),
            'b' | 'h' => out.push_str(&month[..3]),
            'A' => out.push_str(day),
            'a' => out.push_str(&day[..3]),
            'p' => out.push_str(if self.hour < 12 { "AM" } else { "PM" }),
            'F' => out.push_str(&self.format("%Y-%m-%d")?),
            'T' => out.push_str(&self.format("%H:%M:%S")?),
            'D' => out.push_str(&self.format("%m/%d/%y")?),
            'R' => out.push_str(&self.format("%H:%M")?),
            '%' => out.push('%'),
            'n' => out.push('\n'),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_as_c_does() {
        // `date -u -d @1772454896 '+…'` gives the same.
        let t = CivilTime::from_unix(1_772_454_896);
        assert_eq!(
            t.format("%Y-%m-%d %H:%M:%S %A %d %b %j %I%p %-d").as_deref(),
            Some("2026-03-02 12:34:56 Monday 02 Mar 061 12PM 2")
        );
        let leap = CivilTime::from_unix(951_782_400);
        assert_eq!(leap.format("%F %a %j").as_deref(), Some("2000-02-29 Tue 060"));
        assert_eq!(leap.format("%Q"), None);
        assert_eq!(CivilTime::from_unix(-1).format("%F %T").as_deref(), Some("1969-12-31 23:59:59"));
    }
}
