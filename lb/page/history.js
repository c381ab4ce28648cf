// SPDX-License-Identifier: Apache-2.0
// The last minutes of each rate, and how they are drawn. Only what this page has seen: the gateways keep no history.

import { s } from './dom.js';

const SAMPLES_MAX = 90;
const SERIES_MAX = 2000;
const WIDTH = 120;
const HEIGHT = 28;

export class History {
  #series = new Map();

  add(name, value) {
    if (value === null || value === undefined) return;
    let samples = this.#series.get(name);
    if (!samples) {
      if (this.#series.size >= SERIES_MAX) return;
      this.#series.set(name, (samples = []));
    }
    samples.push(value);
    if (samples.length > SAMPLES_MAX) samples.shift();
  }

  get(name) {
    return this.#series.get(name) ?? [];
  }
}

export function sparkline(label) {
  const area = s('path', { class: 'spark-area' });
  const line = s('path', { class: 'spark-line' });
  return s('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'spark', role: 'img', 'aria-label': label, preserveAspectRatio: 'none' }, area, line);
}

/** Draws samples into a sparkline; the newest is at the right edge. */
export function drawSparkline(svg, samples) {
  const [area, line] = svg.children;
  if (samples.length < 2) {
    area.setAttribute('d', '');
    line.setAttribute('d', '');
    return;
  }
  const top = Math.max(...samples, 1);
  const step = WIDTH / (SAMPLES_MAX - 1);
  const begin = WIDTH - (samples.length - 1) * step;
  const points = samples.map((value, index) => `${(begin + index * step).toFixed(1)},${(HEIGHT - 2 - (value / top) * (HEIGHT - 4)).toFixed(1)}`);
  line.setAttribute('d', `M${points.join('L')}`);
  area.setAttribute('d', `M${begin.toFixed(1)},${HEIGHT}L${points.join('L')}L${WIDTH},${HEIGHT}Z`);
}
