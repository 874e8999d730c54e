//! A small plotter: axes, grids, points, lines and bars as inline SVG.

use std::fmt::Write;

/// Text that is safe in markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A logarithmic axis over whole decades.
#[derive(Clone, Copy)]
pub struct Axis {
    low: f64,
    high: f64,
    start: f64,
    length: f64,
}

impl Axis {
    /// An axis from pixel `start` over `length` pixels (negative: upwards) that shows all `values`.
    pub fn new(values: impl Iterator<Item = f64>, start: f64, length: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite() && *v > 0.0) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (1.0, 10.0);
        }
        let (low, mut high) = (low.log10().floor(), high.log10().ceil());
        if high <= low {
            high = low + 1.0;
        }
        Self { low, high, start, length }
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        self.start + (value.log10() - self.low) / (self.high - self.low) * self.length
    }

    /// The ends of the axis.
    pub fn ends(&self) -> (f64, f64) {
        (10f64.powf(self.low), 10f64.powf(self.high))
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        // At most about eight labels.
        let step = ((self.high - self.low) / 8.0).ceil().max(1.0) as usize;
        (self.low as i32..=self.high as i32).step_by(step).map(|e| 10f64.powi(e))
    }
}

/// A drawing of a fixed size.
pub struct Canvas {
    width: f64,
    height: f64,
    body: String,
}

/// Colours that stay apart on white and for most eyes (after Okabe and Ito).
pub const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#555555"];

impl Canvas {
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), style: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(self.body, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" {style}/>"#);
    }

    pub fn path(&mut self, points: &[(f64, f64)], colour: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        let _ = writeln!(self.body, r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>"#);
    }

    pub fn point(&mut self, at: (f64, f64), colour: &str, hint: &str) {
        let ((x, y), hint) = (at, escape(hint));
        let _ = writeln!(
            self.body,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{colour}" fill-opacity="0.75"><title>{hint}</title></circle>"#
        );
    }

    pub fn ring(&mut self, at: (f64, f64), colour: &str, hint: &str) {
        let ((x, y), hint) = (at, escape(hint));
        let _ = writeln!(
            self.body,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="white" fill-opacity="0.5" stroke="{colour}" stroke-width="2"><title>{hint}</title></circle>"#
        );
    }

    pub fn bar(&mut self, at: (f64, f64), size: (f64, f64), colour: &str, hint: &str) {
        let ((x, y), (w, h), hint) = (at, size, escape(hint));
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" fill="{colour}"><title>{hint}</title></rect>"#
        );
    }

    /// Text whose `anchor` is start, middle or end.
    pub fn text(&mut self, at: (f64, f64), anchor: &str, text: &str) {
        let ((x, y), text) = (at, escape(text));
        let _ = writeln!(self.body, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
    }

    /// Grid and labels of two axes.
    pub fn axes(
        &mut self,
        x: Axis,
        y: Axis,
        names: (&str, &str),
        label_x: fn(f64) -> String,
        label_y: fn(f64) -> String,
    ) {
        let ((x0, x1), (y0, y1)) = ((x.start, x.start + x.length), (y.start, y.start + y.length));
        for value in x.decades() {
            let at = x.at(value);
            self.line((at, y0), (at, y1), r##"stroke="#ddd""##);
            self.text((at, y0 + 15.0), "middle", &label_x(value));
        }
        for value in y.decades() {
            let at = y.at(value);
            self.line((x0, at), (x1, at), r##"stroke="#ddd""##);
            self.text((x0 - 5.0, at + 4.0), "end", &label_y(value));
        }
        self.text(((x0 + x1) / 2.0, y0 + 32.0), "middle", names.0);
        self.text((x0, y1 - 8.0), "start", names.1);
    }

    pub fn finish(self) -> String {
        let Self { width, height, body } = self;
        format!(r#"<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{body}</svg>"#)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_cover_their_values_in_whole_decades() {
        let axis = Axis::new([3.0, 450.0, f64::NAN, -1.0].into_iter(), 100.0, 300.0);
        let (low, high) = axis.ends();
        assert!((low - 1.0).abs() < 1e-12 && (high - 1000.0).abs() < 1e-9);
        assert!((axis.at(10.0) - 200.0).abs() < 1e-9);
        let empty = Axis::new(std::iter::empty(), 0.0, 10.0);
        assert!(empty.at(2.0).is_finite());
        assert!(Axis::new([10.0].into_iter(), 0.0, 10.0).at(10.0).is_finite());
    }

    #[test]
    fn markup_is_escaped() {
        let mut canvas = Canvas::new(10.0, 10.0);
        canvas.point((1.0, 2.0), "red", "a<b & \"c\"");
        assert!(canvas.finish().contains("a&lt;b &amp; &quot;c&quot;"));
    }
}
