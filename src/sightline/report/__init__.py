"""Reports of finished jobs: plain data (`data`) and the page made of it (`html`). Nothing here needs torch."""
