#!/usr/bin/python3
"""Opens a page of `ftbench report` in a real browser, without a screen, and looks at the picture: each line and each
bar of each plot must be there in its colour, within its plot. The same looks must find nothing when the plots are hidden.

The browser itself decodes the picture (a canvas), in a page of the test's own that holds both pictures; the page under
test is photographed as it is, with its policy that forbids scripts.

usage: test_page.py FTBENCH
Exit status 77: there is no chromium.
"""
import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

FTBENCH = os.path.abspath(sys.argv[1])
CHROMIUM = shutil.which("chromium")
LIMIT_S = 120
WIDTH = 1000
# Of the places that a shape must have its colour at: lines have dashes, bars a whisker.
ENOUGH = 0.3

if CHROMIUM is None:
    print("chromium is not installed (scripts/setup installs it)")
    sys.exit(77)

# Where the shapes are on the page, and where to look for each: along a line, within a bar.
PROBE = """
const found = { height: document.documentElement.scrollHeight, text: document.body.innerText.length, plots: [] };
for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect(), shapes = [];
    for (const shape of svg.querySelectorAll("polyline, rect")) {
        const to = shape.getScreenCTM(), at = (x, y) => [to.a * x + to.c * y + to.e, to.b * x + to.d * y + to.f];
        const places = [], style = getComputedStyle(shape);
        if (shape.tagName == "polyline") {
            const points = [...shape.points].map((point) => at(point.x, point.y));
            for (let i = 1; i < points.length; i++)
                for (let part = 0; part < 4; part++)
                    places.push([0, 1].map((axis) => points[i - 1][axis] +
                                                     (points[i][axis] - points[i - 1][axis]) * part / 4));
        } else {
            const x = shape.x.baseVal.value, y = shape.y.baseVal.value;
            const w = shape.width.baseVal.value, h = shape.height.baseVal.value;
            if (w < 2 || h < 2)
                continue; /* a value near 0 */
            for (let i = 0; i < 8; i++)
                places.push(at(x + w * (i + .5) / 8, y + h * (i % 2 ? .2 : .8)));
        }
        shapes.push({ kind: shape.tagName, color: shape.tagName == "rect" ? style.fill : style.stroke, places });
    }
    found.plots.push({ box: [box.left, box.top, box.right, box.bottom], shapes });
}
report(found);
"""

# How many of the places have their colour, within two pixels.
LOOK = """
const image = document.querySelector("img"), canvas = document.createElement("canvas");
canvas.width = image.naturalWidth;
canvas.height = image.naturalHeight;
const context = canvas.getContext("2d");
context.drawImage(image, 0, 0);
const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
const has = ([x, y], color) => {
    for (let dy = -2; dy <= 2; dy++)
        for (let dx = -2; dx <= 2; dx++) {
            const i = 4 * ((Math.round(y) + dy) * canvas.width + Math.round(x) + dx);
            if (i >= 0 && color.every((value, channel) => Math.abs(value - pixels[i + channel]) < 48))
                return true;
        }
    return false;
};
const numbers = (color) => color.match(/[0-9]+/g).slice(0, 3).map(Number);
report({ size: [canvas.width, canvas.height], shares: plots.map((plot) => plot.shapes.map((shape, index) => {
    /* a line may lie below those drawn after it */
    const colors = plot.shapes.slice(index).filter((other, i) => i == 0 || shape.kind == "polyline")
                              .map((other) => numbers(other.color));
    return shape.places.filter((place) => colors.some((color) => has(place, color))).length / shape.places.length;
})) });
"""


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix="ftbench-page-")
        runs = {"channel": ["ring", "--rounds", "2", "--samples", "200", "--run-ms", "2", "--ring", "1"],
                "sim": ["--requests", "5000"]}
        for name, options in runs.items():
            subprocess.run([FTBENCH, name, "--json", cls.path(name + ".json"), *options], check=True, timeout=LIMIT_S,
                           capture_output=True)
        results = [cls.path(name + ".json") for name in runs]
        subprocess.run([FTBENCH, "report", "--out", cls.path("page.html"), *results], check=True, timeout=LIMIT_S)
        with open(cls.path("page.html"), encoding="utf-8") as file:
            cls.page = file.read()

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.dir)

    @classmethod
    def path(cls, name):
        return os.path.join(cls.dir, name)

    def browser(self, *options, height=1000):
        """What it writes to standard output. Everything that it keeps is in the test's directory, and goes with it."""
        done = subprocess.run([CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                               "--hide-scrollbars", "--force-device-scale-factor=1", "--disable-background-networking",
                               f"--user-data-dir={self.path('profile')}", f"--window-size={WIDTH},{height}", *options],
                              capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=self.dir)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        return done.stdout

    def ask(self, name, page, script):
        """Runs a script in a page when all of it is there; what it gives to report()."""
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(page + '<pre id="answer"></pre><script>addEventListener("load", () => {'
                       'const report = (value) => { document.getElementById("answer").textContent = '
                       '"{" + JSON.stringify(value) + "}"; };\n' + script + "});</script>")
        text = self.browser("--dump-dom", "--virtual-time-budget=20000", f"file://{self.path(name)}")
        answer = re.search(r'<pre id="answer">\{(.*)\}</pre>', text, re.DOTALL)
        self.assertIsNotNone(answer, text[-2000:])
        return json.loads(html.unescape(answer.group(1)))

    def photograph(self, name, page, height):
        with open(self.path(name + ".html"), "w", encoding="utf-8") as file:
            file.write(page)
        self.browser(f"--screenshot={self.path(name + '.png')}", f"file://{self.path(name + '.html')}", height=height)
        with open(self.path(name + ".png"), "rb") as file:
            return base64.b64encode(file.read()).decode()

    def shares(self, name, page, found):
        picture = self.photograph(name, page, found["height"])
        seen = self.ask(name + "-look.html", f'<!doctype html><img src="data:image/png;base64,{picture}">',
                        f"const plots = {json.dumps(found['plots'])};" + LOOK)
        self.assertEqual(seen["size"], [WIDTH, found["height"]])
        return seen["shares"]

    def test_every_line_and_bar_of_every_plot_is_seen(self):
        policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', self.page)
        self.assertIsNotNone(policy)
        # light, whatever the desktop's taste: colours are compared
        page = self.page.replace("color-scheme: light dark", "color-scheme: light")
        found = self.ask("probe.html", page.replace(policy.group(0), ""), PROBE)
        self.assertEqual(len(found["plots"]), self.page.count("<svg"))
        self.assertGreater(len(found["plots"]), 4)
        self.assertGreater(found["text"], 2000)
        for plot in found["plots"]:
            left, top, right, bottom = plot["box"]
            self.assertTrue(0 <= left < right <= WIDTH and 0 <= top < bottom <= found["height"], plot["box"])
            self.assertGreater((right - left) * (bottom - top), 20000)
            for shape in plot["shapes"]:
                for x, y in shape["places"]:
                    self.assertTrue(left <= x <= right and top <= y <= bottom, (shape["kind"], x, y, plot["box"]))
        kinds = [shape["kind"] for plot in found["plots"] for shape in plot["shapes"]]
        self.assertGreater(kinds.count("polyline"), 3)
        self.assertGreater(kinds.count("rect"), 10)
        for number, plot in enumerate(self.shares("page", page, found)):
            for index, share in enumerate(plot):
                self.assertGreaterEqual(share, ENOUGH, f"plot {number}, shape {index} "
                                        f"({found['plots'][number]['shapes'][index]['kind']}) is not to be seen")
        hidden = page.replace("</style>", "svg * { visibility: hidden; }</style>", 1)
        for number, plot in enumerate(self.shares("hidden", hidden, found)):
            for index, share in enumerate(plot):
                self.assertLess(share, ENOUGH, f"plot {number}, shape {index} is seen although it is hidden")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
