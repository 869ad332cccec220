//! What the screen shows of a sample.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use server::Sample;

use crate::out;

/// Colours of how much an expert is used: of one in memory, of one on the drive. The palette of 256 that every terminal has.
const HELD: [Color; 5] = indexed([22, 23, 29, 36, 43]);
const READ: [Color; 5] = indexed([235, 237, 239, 241, 243]);

/// Used since the sample before.
const HOT: Color = Color::Indexed(214);

/// Used never, and not in memory.
const COLD: Color = Color::Indexed(233);

/// The same without colours; the last is used just now.
const SHADES: [&str; 6] = [" ", "·", "░", "▒", "▓", "█"];

const fn indexed(of: [u8; 5]) -> [Color; 5] {
    let [a, b, c, d, e] = of;
    [Color::Indexed(a), Color::Indexed(b), Color::Indexed(c), Color::Indexed(d), Color::Indexed(e)]
}

/// What is on the screen.
pub(super) struct Screen {
    title: String,
    colours: bool,
    sample: Option<Sample>,
    /// Which experts were used since the sample before.
    hot: Vec<bool>,
    /// Uses of the most used expert of each layer.
    most: Vec<u64>,
    /// Whether the server takes no more requests.
    pub(super) stopping: bool,
    /// Of the log, the newest last.
    pub(super) lines: Vec<String>,
}

/// How one place of the map looks.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    hot: bool,
    /// 0 for never, else 1 to 5.
    used: usize,
    held: bool,
}

impl Place {
    fn colour(self) -> Color {
        match self {
            Self { hot: true, .. } => HOT,
            Self { used, held: true, .. } => HELD[used.max(1) - 1],
            Self { used: 0, .. } => COLD,
            Self { used, .. } => READ[used - 1],
        }
    }

    fn shade(self) -> &'static str {
        if self.hot { SHADES[5] } else { SHADES[self.used.min(4)] }
    }
}

impl Screen {
    /// Without a sample yet.
    pub(super) fn new(title: String, colours: bool) -> Self {
        Self {
            title,
            colours,
            sample: None,
            hot: Vec::new(),
            most: Vec::new(),
            stopping: false,
            lines: Vec::new(),
        }
    }

    /// Layers of the map that share a row of the terminal: two colours fit into a character.
    fn layers_per_row(&self) -> usize {
        if self.colours { 2 } else { 1 }
    }

    /// From now on shows this.
    pub(super) fn take(&mut self, sample: Sample) {
        let before = self.sample.as_ref().map_or(&[][..], |before| &before.heat.uses);
        let grown = before.iter().zip(&sample.heat.uses).map(|(before, now)| now > before);
        self.hot = grown.collect();
        self.hot.resize(sample.heat.uses.len(), false);
        let layers = sample.heat.uses.chunks(sample.heat.experts.max(1));
        self.most = layers.map(|layer| layer.iter().max().copied().unwrap_or(0)).collect();
        self.sample = Some(sample);
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let Some(sample) = &self.sample else { return };
        let has_experts = !sample.heat.uses.is_empty();
        let map_rows = sample.heat.layers.div_ceil(self.layers_per_row()) as u16;
        let map = if has_experts { Constraint::Max(map_rows + 2) } else { Constraint::Length(0) };
        let parts =
            [Constraint::Length(2), Constraint::Length(4), map, Constraint::Min(4), Constraint::Length(1)];
        let [title, figures, map, log, keys] = Layout::vertical(parts).areas(frame.area());
        frame.render_widget(Line::styled(self.title.as_str(), Modifier::BOLD), title);
        frame.render_widget(Paragraph::new(figure_lines(sample)), figures);
        if has_experts {
            self.draw_map(frame, map, sample);
        }
        self.draw_log(frame, log);
        let said = match self.stopping {
            false => "q stops",
            true => "stopping: running answers finish; q ends at once",
        };
        frame.render_widget(Line::styled(said, Modifier::DIM), keys);
    }

    fn draw_log(&self, frame: &mut Frame<'_>, area: Rect) {
        let room = usize::from(area.height.saturating_sub(1));
        let last = self.lines.iter().skip(self.lines.len().saturating_sub(room));
        let heading = Line::styled("Log", Modifier::DIM);
        let lines = [heading].into_iter().chain(last.map(|line| Line::raw(line.as_str())));
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
    }

    /// The map: a column an expert, half a row a layer; several share a place where there is no room.
    fn draw_map(&self, frame: &mut Frame<'_>, area: Rect, sample: &Sample) {
        let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
        let heading = format!(
            "Experts: {} layers down, {} experts across; {} % in memory",
            sample.heat.layers,
            sample.heat.experts,
            percent(sample.held.iter().filter(|held| **held).count(), sample.held.len()),
        );
        frame.render_widget(Line::styled(heading, Modifier::DIM), head);
        let layers_per_row = self.layers_per_row();
        let rows = (usize::from(body.height) * layers_per_row).min(sample.heat.layers);
        let columns = usize::from(body.width).min(sample.heat.experts);
        for y in (0..rows).step_by(layers_per_row) {
            for x in 0..columns {
                let upper = self.place(sample, (x, columns), (y, rows));
                let at = (body.x + x as u16, body.y + (y / layers_per_row) as u16);
                let Some(cell) = frame.buffer_mut().cell_mut(at) else { continue };
                if !self.colours {
                    cell.set_symbol(upper.shade());
                } else if y + 1 < rows {
                    let lower = self.place(sample, (x, columns), (y + 1, rows));
                    cell.set_symbol("▀").set_fg(upper.colour()).set_bg(lower.colour());
                } else {
                    cell.set_symbol("▀").set_fg(upper.colour());
                }
            }
        }
    }

    /// The most of what is at column `x` of so many, and row `y`.
    fn place(&self, sample: &Sample, x: (usize, usize), y: (usize, usize)) -> Place {
        let (layers, experts) = (sample.heat.layers, sample.heat.experts);
        let share = |(at, of): (usize, usize), all: usize| at * all / of..(at + 1) * all / of;
        let places = share(y, layers).flat_map(|layer| {
            let row = &sample.heat.uses[layer * experts..(layer + 1) * experts];
            let most = self.most.get(layer).copied().unwrap_or(0);
            share(x, experts).map(move |expert| (layer * experts + expert, row[expert], most))
        });
        let places = places.map(|(at, uses, most)| Place {
            hot: self.hot.get(at).copied().unwrap_or(false),
            used: level(uses, most),
            held: sample.held.get(at).copied().unwrap_or(false),
        });
        places.max().unwrap_or_default()
    }
}

/// 0 for never, else 1 to 5, by orders of magnitude below the layer's most used.
fn level(uses: u64, most: u64) -> usize {
    if uses == 0 {
        return 0;
    }
    let share = (uses as f64).ln_1p() / (most as f64).ln_1p();
    1 + (share * share * 4.0).round() as usize
}

fn percent(part: usize, of: usize) -> usize {
    (part * 100).checked_div(of).unwrap_or(0)
}

fn figure_lines(sample: &Sample) -> Vec<Line<'static>> {
    let hits = sample.expert_hit_rate.map_or("–".into(), |rate| format!("{:.1} %", 100.0 * rate));
    let memory = match sample.rss_bytes {
        Some(rss) => format!("{} of {} planned", out::bytes(rss), out::bytes(sample.plan_bytes)),
        None => format!("{} planned", out::bytes(sample.plan_bytes)),
    };
    let rows = [
        vec![
            ("Answers", format!("{:.1} tokens/s", sample.answer_tokens_per_s)),
            ("Prompts", format!("{:.1} tokens/s", sample.prompt_tokens_per_s)),
            ("Sequences", format!("{} running, {} waiting", sample.running, sample.waiting)),
        ],
        vec![
            ("Hit rate", hits),
            ("Drive", format!("{:.2} GB/s", sample.drive_bytes_per_s / 1e9)),
            ("Slots", format!("{} of {} in use", sample.slots, sample.slots_planned)),
        ],
        vec![("Memory", memory)],
    ];
    let line = |row: Vec<(&'static str, String)>| {
        let spans = row.into_iter().flat_map(|(name, value)| {
            let name = Span::styled(format!("{name:<10}"), Style::new().add_modifier(Modifier::DIM));
            [name, format!("{value:<15}").into()]
        });
        Line::from_iter(spans)
    };
    rows.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use engine::ExpertHeat;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn sample(uses: Vec<u64>) -> Sample {
        Sample {
            running: 2,
            waiting: 1,
            prompt_tokens_per_s: 120.04,
            answer_tokens_per_s: 6.84,
            expert_hit_rate: Some(0.713),
            drive_bytes_per_s: 5.21e9,
            rss_bytes: Some(11 << 30),
            plan_bytes: 12 << 30,
            budget_bytes: 12 << 30,
            slots: 3,
            slots_planned: 4,
            held: uses.iter().map(|uses| *uses > 50).collect(),
            heat: ExpertHeat { layers: 3, experts: uses.len() / 3, uses },
        }
    }

    fn drawn(screen: &Screen, width: u16, height: u16) -> TestBackend {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().clone()
    }

    fn screen(colours: bool) -> Screen {
        let mut screen = Screen::new("http://127.0.0.1:8080 · demo".into(), colours);
        screen.take(sample(vec![0, 1, 100, 0, 0, 0, 60, 60, 9, 9, 0, 1]));
        screen.take(sample(vec![0, 1, 100, 0, 0, 0, 61, 60, 9, 9, 0, 1]));
        screen.lines = (0..9).map(|at| format!("id=req_{at} status=200")).collect();
        screen
    }

    #[test]
    fn figures_map_and_the_last_lines_are_shown() {
        insta::assert_snapshot!(drawn(&screen(false), 80, 15), @r#"
        "http://127.0.0.1:8080 · demo                                                    "
        "                                                                                "
        "Answers   6.8 tokens/s   Prompts   120.0 tokens/s Sequences 2 running, 1 waiting"
        "Hit rate  71.3 %         Drive     5.21 GB/s      Slots     3 of 4 in use       "
        "Memory    11.00 GiB of 12.00 GiB planned                                        "
        "                                                                                "
        "Experts: 3 layers down, 4 experts across; 25 % in memory                        "
        " ·▓                                                                             "
        "  █▓                                                                            "
        "▓▓ ·                                                                            "
        "Log                                                                             "
        "id=req_6 status=200                                                             "
        "id=req_7 status=200                                                             "
        "id=req_8 status=200                                                             "
        "q stops                                                                         "
        "#);
    }

    #[test]
    fn two_layers_share_a_row_of_colours() {
        let backend = drawn(&screen(true), 80, 15);
        let cell = |x, y| backend.buffer().cell((x, y)).unwrap();
        let map = 7;
        assert_eq!((cell(2, map).symbol(), cell(2, map).fg, cell(2, map).bg), ("▀", HELD[4], HOT));
        assert_eq!((cell(3, map).fg, cell(3, map).bg), (COLD, HELD[4]));
        assert_eq!((cell(0, map + 1).fg, cell(0, map + 1).bg), (READ[4], Color::Reset));
        assert_eq!(cell(4, map).symbol(), " ");
    }

    #[test]
    fn any_size_holds_any_model() {
        let mut wide = screen(true);
        wide.take(sample((0..3 * 512).collect()));
        for (width, height) in [(1, 1), (3, 40), (80, 5), (80, 24), (300, 100)] {
            drawn(&wide, width, height);
        }
        wide.take(sample(Vec::new()));
        drawn(&wide, 80, 24);
        let empty = Screen::new(String::new(), true);
        drawn(&empty, 10, 3);
    }
}
