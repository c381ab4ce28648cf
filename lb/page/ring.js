// SPDX-License-Identifier: Apache-2.0
// The ring: members in ring order, the token on its way, and who is out and why.

import { attribute, h, s, text } from './dom.js';
import { colour } from './colours.js';
import { words } from './format.js';

const SIZE = 300;
const CENTRE = SIZE / 2;
const RADIUS = 98;
const OUTSIDE = 124;
// The real token turns far too fast to be seen; it is shown slower, in proportion.
const TURNS_SHOWN_MAX = 0.45;
const TRAIL = 10;

export class RingView {
  #layer = s('g');
  #trail = s('g', { class: 'trail' });
  #caption = h('p', { class: 'ring-caption' });
  #out = h('ul', { class: 'ring-out' });
  #turns = 0;
  #angle = 0;
  #last = 0;
  #still = matchMedia('(prefers-reduced-motion: reduce)');

  constructor(container) {
    const circle = s('circle', { cx: CENTRE, cy: CENTRE, r: RADIUS, class: 'ring-line' });
    for (let step = 0; step < TRAIL; step += 1) {
      this.#trail.append(s('circle', { r: (6 - step * 0.5).toFixed(1), opacity: (1 - step / TRAIL).toFixed(2) }));
    }
    this.svg = s('svg', { viewBox: `0 0 ${SIZE} ${SIZE}`, class: 'ring', role: 'img' }, circle, this.#trail, this.#layer);
    container.append(this.svg, this.#caption, this.#out);
    requestAnimationFrame((now) => this.#turn(now));
  }

  update(status, nodes, live) {
    const members = status?.view?.members ?? (status ? [status.node] : []);
    const rate = nodes.find((node) => node.name === status?.node)?.token_rate ?? null;
    const alone = !status?.view;
    this.#turns = live && !alone && members.length ? Math.min((rate ?? 0) / 40, TURNS_SHOWN_MAX) : 0;
    this.#place(members, nodes, status?.node);
    const out = nodes.filter((node) => !members.includes(node.name));
    text(this.#caption, caption(status, members, rate));
    this.#out.replaceChildren(...out.map((node) => h('li', {}, h('b', {}, node.name), ` is out: ${node.reason ?? words(node.state)}`)));
    attribute(this.svg, 'aria-label', `Ring of ${members.join(', ') || 'nobody'}${out.length ? `; out: ${out.map((node) => node.name).join(', ')}` : ''}`);
    this.#trail.setAttribute('visibility', this.#turns ? 'visible' : 'hidden');
  }

  #place(members, nodes, own) {
    const order = seating(members, nodes);
    const byName = new Map(nodes.map((node) => [node.name, node]));
    this.#layer.replaceChildren(...order.map((name, index) => seat(name, index / order.length, members.includes(name), byName.get(name), name === own)));
  }

  #turn(now) {
    const seconds = Math.min((now - this.#last) / 1000, 0.1);
    this.#last = now;
    if (this.#turns && !this.#still.matches && !document.hidden) {
      this.#angle = (this.#angle + seconds * this.#turns) % 1;
      [...this.#trail.children].forEach((dot, step) => {
        const [x, y] = at(this.#angle - step * 0.008, RADIUS);
        dot.setAttribute('cx', x);
        dot.setAttribute('cy', y);
      });
    }
    requestAnimationFrame((then) => this.#turn(then));
  }
}

function at(part, radius) {
  const angle = part * 2 * Math.PI - Math.PI / 2;
  return [(CENTRE + radius * Math.cos(angle)).toFixed(1), (CENTRE + radius * Math.sin(angle)).toFixed(1)];
}

/** Everybody's place: members in ring order, those who are out where they would come by their number. */
function seating(members, nodes) {
  const ids = new Map(nodes.map((node) => [node.name, node.id]));
  const order = [...members];
  for (const node of nodes) {
    if (order.includes(node.name)) continue;
    const next = order.findIndex((name) => (ids.get(name) ?? 0) > node.id);
    order.splice(next < 0 ? order.length : next, 0, node.name);
  }
  return order;
}

function seat(name, part, member, node, own) {
  const [x, y] = at(part, member ? RADIUS : OUTSIDE);
  const state = member ? (node?.state ?? 'in_service') : 'gone';
  const group = s('g', { class: `seat ${state}${own ? ' own' : ''}`, transform: `translate(${x} ${y})` });
  const title = s('title');
  title.textContent = `${name}: ${words(state)}${node?.reason ? `, ${node.reason}` : ''}`;
  const disc = s('circle', { r: 21, class: `disc ${colour(name)}` });
  const label = s('text', { 'text-anchor': 'middle', dy: '0.35em' });
  label.textContent = name.length > 6 ? `${name.slice(0, 5)}…` : name;
  group.append(title, disc, label);
  return group;
}

function caption(status, members, rate) {
  if (!status) return 'waiting for the gateway';
  if (!status.view) return 'one gateway, no ring';
  const pace = rate ? ` · token ${rate < 10 ? rate.toFixed(1) : Math.round(rate)} turns/s` : '';
  return `view ${status.view.number} · ${members.length} ${members.length === 1 ? 'member' : 'members'}${pace}`;
}
