"""All that a real study needs around the four method files, which know nothing of it.

A map of the house. Rooms may use those above them, and the method; never those below.

    words headers files findings progress   the ground floor: names as they are kept, words that say
    threads processes locks runs            nothing, what slide files say of themselves, atomic
                                            files and tables, what is wrong with somebody's data,
                                            lines on the terminal, torchrun, who holds a folder, a
                                            run's folder
    devices weights trust torchscript encoders    which network describes tiles, with whose weights
    provenance                              what results come from: SIMULATED, an untrained encoder
    ridge space gene_sets                   numbers that both programs want: closed-form ridge,
                                            points and outlines on tiles, .gmt files
    cohort/      a cohort folder, read and checked, and what is made in it
                 scale genes markers                       of expression; genes, and what they mark
                 names samples expression slides           names that may be one, tables, slides,
                 places truth sites identity               cells and outlines, and beside the slide;
                 labels check                              whose a slide is, two classes of words,
                                                           all that is checked before hours of work
                 made steps tiles encoding features supertiles  tiles/ features/ supertiles/, and
                                                           what of them was made from what
    exchange/    other people's formats: gdc, clam (TRIDENT, STAMP), layout, geojson, qupath, h5ad
    fast/        exact twins of the method's slow pieces, each passed in as an argument:
                 products topk networks heads bank encoder
    audit/       choices (paper or code), ledger (who saw whom), compare (what a choice is worth)
    show/        pictures: plots, maps, gallery, slide_map
    simulation/  a cohort drawn from known cells: tissue, drawing, genes, cohort
    application  a run's models on slides, described as those they learned from
    he2rna/      HE2RNA's studies: data, folds, training, judging, report; MSI transfer
    histcode/    HistCode's: pretraining, watching, probe; diagnosis; differential expression
    calibration/ what p and intervals promise and keep, in simulations: a study a file, table
    commands/    a file a verb, its options beside it: he2rna/ histcode/ tiling/
    bench/       this implementation and the direct way, side by side: timing; speed heads tcga
                 encoding (of slides) peers (others' packages) contention (a busy machine) growth
                 growth_slides (seconds and memory by size) collapse (AdCo's, as a picture)
    tests/       test_<room>.py for each
"""

from lab.threads import settle_threads

settle_threads()  # before any room imports torch
