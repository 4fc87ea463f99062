"""Show on real records what a recipe keeps and how it weighs it, before any training."""

import argparse

from leadspan.cli.output import add_json, console_beside, load_libraries, write_json
from leadspan.cli.reading import add_recipe, read_model, read_recipe
from leadspan.text import print_plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, number of records."""
    add_recipe(parser)
    parser.add_argument("--records", type=int, default=2, help="training records to show (2)")
    parser.add_argument("--chars", type=int, default=400, help="characters shown of a long run (400); 0 shows all")
    parser.add_argument("--loss", action="store_true", help="show the loss of every token of the uncut records")
    parser.add_argument("--model", metavar="RUN", help="run or model that computes the loss (the recipe's student)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Prepare the data of the recipe and print it."""
    from leadspan.errors import SettingsError

    if options.records < 0 or options.chars < 0:
        raise SettingsError(f"--records {options.records} --chars {options.chars}: give numbers from 0 upwards")
    recipe = read_recipe(options, ["data", "student"] if options.loss else ["data"])
    student = read_model(options.model).model if options.model else recipe.student
    # Imports of torch wait until the recipe is known to be valid.
    load_libraries()
    from leadspan.cli.show import counts_block, legend, loss_panels, record_panel
    from leadspan.inputs import prepare_data
    from leadspan.status import PlainConsole, StatusLine, report_status
    from leadspan.tables import rich_table
    from leadspan.traces.read import tags_warning

    console = console_beside(options.json)
    with StatusLine(PlainConsole(stderr=True)):
        report_status("preparing data")
        data = prepare_data(recipe)
    form = recipe.data.rendering
    if warning := tags_warning(recipe.data.train, (form.think_open, form.think_close)):
        print_plain(f"warning: {warning}", error=True)
    counts = {"counts": data.examples.counts.model_dump(mode="json"), "left_out": data.splits.left_out}
    if options.loss:
        for panel in loss_panels(recipe, data, student, options.records):
            console.print(panel)
        write_json(counts, options.json)
        return
    has_styles = console.color_system is not None
    console.print(legend(has_styles))
    # The first records: what is shown must be found again in the file.
    for index in range(min(options.records, len(data.examples))):
        console.print(record_panel(data.examples, index, data.renderer.tokenizer, options.chars, has_styles))
    console.print(rich_table(counts_block(recipe.cut.label, data.examples.counts, data.splits.left_out)))
    write_json(counts, options.json)
