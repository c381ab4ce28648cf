// SPDX-License-Identifier: Apache-2.0
// One pop-up menu for the page: arrow keys walk, Enter does, Escape closes and gives the focus back.

import { h } from './dom.js';

const menu = document.getElementById('menu');
let opener = null;

/** Opens beside an element. items: [{label, run}]. */
export function openMenu(beside, title, items) {
  opener = beside;
  menu.replaceChildren(h('p', { class: 'menu-title' }, title), h('div', { role: 'menu', 'aria-label': title }, items.map(entry)));
  menu.showPopover();
  const box = beside.getBoundingClientRect();
  const top = Math.min(box.bottom + 4, innerHeight - menu.offsetHeight - 8);
  menu.style.setProperty('left', `${Math.max(8, Math.min(box.left, innerWidth - menu.offsetWidth - 8))}px`);
  menu.style.setProperty('top', `${Math.max(8, top)}px`);
  menu.querySelector('[role=menuitem]')?.focus();
}

function entry({ label, run }) {
  const close = () => {
    menu.hidePopover();
    run();
  };
  return h('button', { type: 'button', role: 'menuitem', tabindex: '-1', onclick: close }, label);
}

menu.addEventListener('keydown', (event) => {
  const entries = [...menu.querySelectorAll('[role=menuitem]')];
  const step = { ArrowDown: 1, ArrowUp: -1, Tab: event.shiftKey ? -1 : 1 }[event.key];
  const edge = { Home: 0, End: entries.length - 1 }[event.key];
  if (step === undefined && edge === undefined) return;
  event.preventDefault();
  const index = entries.indexOf(document.activeElement);
  entries[edge ?? (index + step + entries.length) % entries.length]?.focus();
});

menu.addEventListener('toggle', (event) => {
  if (event.newState === 'closed') opener?.focus();
});
