def write_report(cells, folder):
    pass
