// SPDX-License-Identifier: Apache-2.0
// Gateways as cards with the VIPs they hold. A VIP is dragged to another card, or moved from its menu by keyboard.

import { attribute, h, reconcile, text, toast } from './dom.js';
import { colour } from './colours.js';
import { drawSparkline, sparkline } from './history.js';
import { duration, host, scaled, since, whole, words } from './format.js';
import { openMenu } from './menu.js';

const NOBODY = { name: '', state: 'nobody' };
const DRAG_TYPE = 'text/x-vip';
// Every gateway in service has it: there is nothing to move.
const isRouted = (vip) => vip.announce === 'route';

export class NodesView {
  #list;
  #api = null;
  #nodes = [];
  #vips = [];
  // address -> node it was told to move to
  #moving = new Map();

  constructor(list) {
    this.#list = list;
  }

  connect(api) {
    this.#api = api;
    this.#moving.clear();
  }

  update(nodes, vips, history, own) {
    this.#nodes = nodes;
    this.#vips = vips;
    for (const vip of vips) {
      if (this.#moving.get(vip.address) === vip.owner) this.#moving.delete(vip.address);
    }
    const homeless = vips.some((vip) => !vip.owners.length);
    const rows = homeless ? [...nodes, NOBODY] : nodes;
    reconcile(this.#list, rows, (node) => node.name, (node) => this.#card(node), (card, node) => this.#fill(card, node, history, own));
  }

  #card(node) {
    const card = h('li', { class: 'node' },
      h('div', { class: 'node-head' }, h('span', { class: 'dot' }), h('h3', {}), h('span', { class: 'here', title: 'This page talks to it' }, 'here'), h('span', { class: 'state' }), h('button', { class: 'quiet more', type: 'button', 'aria-haspopup': 'menu' }, '⋯')),
      h('p', { class: 'why' }),
      h('div', { class: 'node-load' }, sparkline('packets per second, last 90 seconds'), h('dl', { class: 'figures' })),
      h('ul', { class: 'vips' }),
      h('p', { class: 'resources' }));
    if (!node.name) return card;
    card.querySelector('.more').addEventListener('click', (event) => this.#nodeMenu(event.currentTarget, card.dataset.key));
    card.addEventListener('dragover', (event) => {
      if (!event.dataTransfer.types.includes(DRAG_TYPE)) return;
      event.preventDefault();
      card.classList.add('target');
    });
    card.addEventListener('dragleave', (event) => {
      if (!card.contains(event.relatedTarget)) card.classList.remove('target');
    });
    card.addEventListener('drop', (event) => {
      event.preventDefault();
      card.classList.remove('target');
      this.#move(event.dataTransfer.getData(DRAG_TYPE), card.dataset.key);
    });
    return card;
  }

  #fill(card, node, history, own) {
    const nobody = node === NOBODY;
    card.className = `node ${node.state} ${colour(node.name)}`;
    text(card.querySelector('h3'), nobody ? 'Held by nobody' : node.name);
    card.querySelector('.here').hidden = node.name !== own;
    text(card.querySelector('.state'), nobody ? '' : words(node.state));
    const vips = this.#vips.filter((vip) => (nobody ? !vip.owners.length : vip.owners.includes(node.name)));
    const why = [...new Set(vips.map((vip) => vip.reason ?? ''))].filter(Boolean).join('; ');
    text(card.querySelector('.why'), nobody ? why : (node.state === 'in_service' ? '' : (node.reason ?? '')));
    card.querySelector('.more').hidden = nobody;
    attribute(card.querySelector('.more'), 'aria-label', `Actions for ${node.name}`);
    card.querySelector('.node-load').hidden = nobody;
    drawSparkline(card.querySelector('.spark'), history.get(`node ${node.name}`));
    figures(card.querySelector('.figures'), node);
    reconcile(card.querySelector('.vips'), vips, (vip) => vip.address, (vip) => this.#chip(vip), (chip, vip) => this.#fillChip(chip, vip));
    const broken = (node.resources ?? []).filter((item) => !item.healthy);
    text(card.querySelector('.resources'), broken.map((item) => `${item.name}: ${item.detail ?? 'failed'}${item.required ? '' : ' (advisory)'}`).join(' · '));
  }

  #chip(vip) {
    const button = h('button', { type: 'button', class: 'vip', draggable: 'true', 'aria-haspopup': 'menu', 'aria-describedby': 'vip-hint' },
      h('span', { class: 'address' }), h('span', { class: 'marks', 'aria-hidden': 'true' }), h('small', {}));
    button.addEventListener('dragstart', (event) => {
      event.dataTransfer.setData(DRAG_TYPE, vip.address);
      event.dataTransfer.effectAllowed = 'move';
      document.body.classList.add('dragging');
    });
    button.addEventListener('dragend', () => document.body.classList.remove('dragging'));
    button.addEventListener('click', () => this.#vipMenu(button, vip.address, button.closest('.node').dataset.key));
    return h('li', {}, button);
  }

  #fillChip(item, vip) {
    const button = item.firstElementChild;
    const moving = this.#moving.get(vip.address);
    button.classList.toggle('moving', Boolean(moving));
    text(button.querySelector('.address'), host(vip.address));
    text(button.querySelector('.marks'), (vip.pin ? '📌' : '') + (vip.prefer?.length ? '★' : ''));
    attribute(button, 'draggable', String(!isRouted(vip)));
    text(button.querySelector('small'), moving ? `to ${moving} …` : isRouted(vip) ? 'as a route' : `for ${since(vip.since)}`);
    const marks = `${vip.pin ? `, pinned to ${vip.pin}` : ''}${vip.prefer?.length ? `, prefers ${vip.prefer.join(', ')}` : ''}`;
    attribute(button, 'aria-label', `VIP ${host(vip.address)}, held by ${vip.owners.join(', ') || 'nobody'}${marks}`);
    attribute(button, 'title', `${vip.address}${vip.segment ? ` on ${vip.segment}` : ''}${marks}${vip.reason ? `\n${vip.reason}` : ''}`);
  }

  #vipMenu(button, address, holder) {
    const vip = this.#vips.find((row) => row.address === address);
    if (!vip) return;
    if (isRouted(vip)) {
      this.#nodeMenu(button, holder);
      return;
    }
    const others = this.#nodes.filter((node) => node.name !== vip.owner && node.state === 'in_service');
    const path = `/v1/vips/${host(address)}`;
    openMenu(button, `VIP ${host(address)}`, [
      ...others.map((node) => ({ label: `Move to ${node.name}`, run: () => this.#move(address, node.name) })),
      vip.pin
        ? { label: `Unpin from ${vip.pin}`, run: () => this.#do(`${path}/unpin`, undefined, `${host(address)} may move again`) }
        : { label: `Pin to ${vip.owner ?? 'its owner'}`, run: () => this.#do(`${path}/pin`, { node: null }, `${host(address)} stays on ${vip.owner}`) },
      ...this.#nodes.filter((node) => vip.prefer?.[0] !== node.name)
        .map((node) => ({ label: `Prefer ${node.name}`, run: () => this.#do(`${path}/prefer`, { nodes: [node.name] }, `${host(address)} prefers ${node.name}`) })),
      ...(vip.prefer?.length ? [{ label: 'Prefer nobody', run: () => this.#do(`${path}/prefer`, { nodes: [] }, `${host(address)} prefers nobody`) }] : []),
    ]);
  }

  #nodeMenu(button, name) {
    const node = this.#nodes.find((row) => row.name === name);
    if (!node) return;
    const path = `/v1/nodes/${encodeURIComponent(name)}`;
    openMenu(button, `Gateway ${name}`, [
      node.drained || node.state === 'draining'
        ? { label: 'Put into service again', run: () => this.#do(`${path}/undrain`, undefined, `${name} serves again`) }
        : { label: 'Drain: take out of service in order', run: () => this.#do(`${path}/drain`, undefined, `${name} is being drained`) },
    ]);
  }

  async #move(address, node) {
    const vip = this.#vips.find((row) => row.address === address);
    if (!vip || vip.owner === node) return;
    this.#moving.set(address, node);
    const done = await this.#do(`/v1/vips/${host(address)}/move`, { node }, `${host(address)} moves to ${node}`);
    if (!done) this.#moving.delete(address);
  }

  async #do(path, body, message) {
    try {
      await this.#api.post(path, body);
      toast(message);
      return true;
    } catch (error) {
      toast(`${error.message}${error.remedy ? ` — ${error.remedy}` : ''}`, 'error');
      return false;
    }
  }
}

function figures(list, node) {
  const rows = [
    ['packets/s', scaled(node.packets_per_s)],
    ['bit/s', scaled(node.bits_per_s)],
    ['connections', whole(node.connections)],
    ['lag', node.loop_lag_ms === null || node.loop_lag_ms === undefined ? '–' : `${node.loop_lag_ms.toFixed(1)} ms`],
    ['up', duration(node.uptime_s)],
  ];
  reconcile(list, rows, ([name]) => name, ([name]) => h('div', {}, h('dt', {}, name), h('dd', {})), (row, [, value]) => text(row.lastElementChild, value));
}
