//! A small plot of what waits after each pass. Pure.

/// How a plot is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Canvas {
    pub width: usize,
    pub height: usize,
    /// With block characters in eighths; else with `#` alone.
    pub blocks: bool,
}

const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The lines of a plot of `values`, in time, each at most as wide as the canvas; `top` is what its highest value is called,
/// `ends` what its first and last are. No lines where there is nothing to draw or no room.
pub fn plot(values: &[u64], top: &str, ends: (&str, &str), canvas: Canvas) -> Vec<String> {
    let margin = top.chars().count().max(1) + 2;
    let most = values.iter().copied().max().unwrap_or(0);
    if most == 0 || canvas.width < margin + 10 || canvas.height == 0 {
        return Vec::new();
    }
    let columns = columns(values, canvas.width - margin);
    let (bar, corner, line) = if canvas.blocks { ('┤', '└', '─') } else { ('|', '+', '-') };
    let mut lines = Vec::new();
    for row in (0..canvas.height).rev() {
        let label = if row + 1 == canvas.height { top } else { "" };
        let cells: String = columns.iter().map(|value| cell(*value, most, row, canvas)).collect();
        let cells = format!("{label:>0$} {bar}{cells}", margin - 2);
        lines.push(cells.trim_end().to_owned());
    }
    let rule: String = columns.iter().map(|_| line).collect();
    lines.push(format!("{:>1$} {corner}{rule}", "0", margin - 2));
    let gap = columns.len().saturating_sub(ends.0.chars().count());
    if gap > ends.1.chars().count() {
        lines.push(format!("{:margin$}{}{:>gap$}", "", ends.0, ends.1));
    }
    lines
}

/// As many columns as fit: each value the same number of them, or, where there are more values, the highest of some.
fn columns(values: &[u64], width: usize) -> Vec<u64> {
    let each = width / values.len();
    if each > 0 {
        return values.iter().flat_map(|value| std::iter::repeat_n(*value, each.min(4))).collect();
    }
    let of = |column: usize| {
        let from = column * values.len() / width;
        let to = ((column + 1) * values.len() / width).max(from + 1);
        values[from..to].iter().copied().max().unwrap_or(0)
    };
    (0..width).map(of).collect()
}

/// What a row, counted from below, shows of a value. Anything more than nothing shows at least a little.
fn cell(value: u64, most: u64, row: usize, canvas: Canvas) -> char {
    let steps = if canvas.blocks { 8 } else { 1 };
    let all = canvas.height as u128 * steps;
    let filled = (u128::from(value) * all * 2 + u128::from(most)) / (u128::from(most) * 2);
    let filled = if value > 0 { filled.max(1) } else { 0 };
    let here = filled.saturating_sub(row as u128 * steps).min(steps) as usize;
    if canvas.blocks { EIGHTHS[here] } else { [' ', '#'][here] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(values: &[u64], width: usize, blocks: bool) -> Vec<String> {
        plot(values, "8 B", ("11-20", "12-20"), Canvas { width, height: 2, blocks })
    }

    #[test]
    fn plots_judged_by_eye() {
        let values = [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8];
        let blocks = ["8 B ┤     ▂▄▆████", "    ┤ ▂▄▆████████", "  0 └────────────", "     11-20  12-20"];
        assert_eq!(draw(&values, 20, true), blocks);
        let ascii = ["8 B |      ######", "    | ###########", "  0 +------------", "     11-20  12-20"];
        assert_eq!(draw(&values, 20, false), ascii);
    }

    #[test]
    fn no_line_is_wider_than_the_canvas() {
        for count in [1, 2, 10, 30, 100, 365, 1000] {
            for width in [15, 16, 40, 80, 120] {
                let values: Vec<u64> = (0..count).map(|i| i * 37 % 101).collect();
                let lines = draw(&values, width, true);
                assert!(lines.iter().all(|line| line.chars().count() <= width), "{count} values in {width}");
            }
        }
    }

    #[test]
    fn of_many_values_the_highest_shows_and_little_is_not_nothing() {
        let mut values = vec![0; 1000];
        values[777] = 1000;
        assert_eq!(draw(&values, 50, true)[0].matches('█').count(), 1);
        values[3] = 1;
        assert_eq!(draw(&values, 50, true)[1].matches('▁').count(), 1);
        assert!(draw(&[0, 0], 50, true).is_empty(), "nothing waits: nothing to draw");
    }
}
